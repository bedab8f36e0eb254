# SPDX-License-Identifier: Apache-2.0
"""What everybody knows: what animals can do, where they live, what things are for, who does what, what makes sense."""

from functools import partial

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.generated import task
from jaxpost.data.nano.scenes.wordings import sensible_pair
from jaxpost.data.nano.world import ABILITIES, ANIMALS, HOMES, JOBS, USES, a
from jaxpost.data.tasks import Row

task = partial(task, "sense")


def can_do(dice: Dice) -> Row:
    """Half of the rows are true, so the ability is drawn after the answer."""
    ability = dice.pick(ABILITIES)
    able = dice.chance(0.5)
    names = [animal.name for animal in ANIMALS if (ability in animal.can) == able]
    return {
        "a_animal": a(dice.pick(names)),
        "ability": ability,
        "answer": "yes" if able else "no",
        "options": ("yes", "no"),
    }


def home_of(dice: Dice) -> Row:
    animal = dice.pick(ANIMALS)
    others = dice.draw([home for home in HOMES if home != animal.home], 2)
    return {"animal": animal.name, "answer": animal.home, "options": tuple(dice.shuffled([animal.home, *others]))}


def used_for(dice: Dice) -> Row:
    (tool, use), *others = dice.draw(USES, 3)
    options = dice.shuffled([tool, *(other for other, _ in others)])
    return {"use": use, "answer": tool, "options": tuple(options)}


def job_of(dice: Dice) -> Row:
    (job, does, place), *others = dice.draw(JOBS, 3)
    options = dice.shuffled([job, *(other for other, _, _ in others)])
    return {"does": does, "place": place, "answer": job, "options": tuple(options)}


def makes_sense(dice: Dice) -> Row:
    good, bad = sensible_pair(dice)
    return {"answer": good, "bad": bad, "options": tuple(dice.shuffled((good, bad)))}


TASKS = (
    task(
        can_do,
        "a_animal ability",
        (
            "Can {a_animal} {ability}?",
            "Is {a_animal} able to {ability}?\n{options_}",
            "Do you think that {a_animal} can {ability}? Answer yes or no.",
            "{a_animal}: can it {ability}?",
            "We want to see {a_animal} {ability}. Is that possible?",
            "Tell me if this is something {a_animal} does: {ability}.\n{options_}",
            "A child asks if {a_animal} knows how to {ability}. What do you say?",
            "Animal: {a_animal}\nIt can {ability}:",
            "Has anyone ever seen {a_animal} {ability}?\n{options_}",
        ),
        turned=(('Name an animal. Asked if it can {ability}, we say "{answer}".', "{a_animal}"),),
        metric="rank",
        train=1_000,
    ),
    task(
        home_of,
        "animal",
        (
            "Where does the {animal} live?\n{options_}",
            "Choose the home of the {animal}.\n{options_}",
            "{options_}\nIn which of these places would you look for the {animal}?",
            "Animal: {animal}\n{options_}\nHome:",
            "The {animal} got lost. To which place do we bring it back?\n{options_}",
            "What is the best place for the {animal}?\n{options_}",
            "We want to see the {animal}. Which place should we go to?\n{options_}",
            "The {animal} feels at home in one of these places.\n{options_}",
        ),
        turned=(
            ("Name an animal whose home is the {answer}.", "{animal}"),
            ("What could you see in the {answer}? Name an animal.", "{animal}"),
        ),
        metric="rank",
        train=2_000,
    ),
    task(
        used_for,
        "use answer",
        (
            "What do you use to {use}?\n{options_}",
            "You want to {use}. What do you need?\n{options_}",
            "{options_}\nWith which of these can we {use}?",
            "Choose the thing that helps to {use}.\n{options_}",
            "Someone has to {use}. Give them the right thing.\n{options_}",
            "It is made to {use}. What is it?\n{options_}",
            "I have to {use}, but I have lost something. What did I lose?\n{options_}",
            "Name the thing you would take to {use}.\n{options_}",
        ),
        turned=(
            ("What is the use of this thing: {answer}?", "{use}"),
            ("Here is one {answer}. Tell me what to do with it.", "{use}"),
        ),
        metric="rank",
        train=3_000,
    ),
    task(
        job_of,
        "does answer",
        (
            "Who {does}?\n{options_}",
            "This person {does}. What is the job?\n{options_}",
            "A person in the {place} {does}. Choose the name of the job.\n{options_}",
            "{options_}\nWho of these {does}?",
            "We need somebody who {does}. Whom do we call?\n{options_}",
            "My uncle {does} all day. What is he?\n{options_}",
            "What do you call a person who {does}?\n{options_}",
            "The one who {does} works as one of these.\n{options_}",
        ),
        turned=(
            ("What does a person with the job {answer} do?", "{does}"),
            ("Job: {answer}\nWork: this person", "{does}"),
        ),
        metric="rank",
        train=3_000,
    ),
    task(
        makes_sense,
        "answer bad",
        (
            "Which sentence makes sense?\n{options_}",
            "Choose the sentence that can be true.\n{options_}",
            "{options_}\nOnly one of these can happen. Which one?",
            "One of the lines is silly. Copy the other one.\n{options_}",
            "Which of the following would you hear in real life?\n{options_}",
            "A clever reader finds the line that is not strange.\n{options_}",
            "What is more likely?\n{options_}",
            "Here are two lines, and only one is possible. Write that one.\n{options_}",
        ),
        turned=(
            ("Change this silly sentence so that it makes sense. {bad}", "{answer}"),
            ("{bad}\nThat is not possible. What was meant?", "{answer}"),
        ),
        metric="rank",
    ),
)
