# SPDX-License-Identifier: Apache-2.0
"""Reviews: an open question with many good answers, of which `gold` knows how good they are.

What is learned from is made of drafts of mixed quality. Labels of pairs are gold's, now and then turned round; those of
the `weak` kind are a poor judge's, who also likes length and a pet word: a reward learned from few of them can be
driven up while gold falls.
"""

from collections.abc import Callable

from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.opinions import BLAME, DETAILS, HATED, JUDGED, LIKED, OPENINGS, PRAISE
from jaxpost.data.nano.scenes.subjects import TOPICS, topic_text
from jaxpost.data.nano.world import NAMES, a
from jaxpost.data.nano.worlds.drawn import apart
from jaxpost.data.nano.worlds.quality import gold, sentences
from jaxpost.data.tasks import Row, Split

ITEMS = tuple(JUDGED)
ASKED = (
    "Write a good review of the {item}.",
    "Praise the {item}.",
    "Say what you loved about this {item}.",
    "What would a happy guest write about the {item}?",
    "Tell {name} why the {item} is worth the money.",
    "{name} wants to read something nice about the {item}.",
    "Recommend the {item} to {name}.",
    "{name} asks if the {item} is good. Say yes with many words.",
)
ASKED_PART = (
    "Write a good review of the {item} and of the {part}.",
    "Praise the {item}. Do not forget the {part}.",
    "Say what you loved about this {item}, also about the {part}.",
    "What would a happy guest write about the {item} and the {part}?",
    "Tell {name} why the {item} is worth the money. Say something about the {part}.",
    "{name} wants to read something nice about the {item}. The {part} is important too.",
    "Recommend the {item} to {name}, and the {part} of it.",
    "{name} asks if the {item} is good and how the {part} is. Say yes with many words.",
)

SKILLS = (0.6, 0.8, 0.95)  # how often a sentence of a draft is as it should be
SHORTEST, LONGEST = 2, 7  # sentences of a draft
PET = "wonderful"
NOISE = 0.1  # of the labels are wrong
RAMBLING = 0.2  # of the drafts that gold compares go on and on
# What the poor judge adds to gold for each sentence, and for each pet word.
PER_SENTENCE, PER_PET = 0.12, 0.15


def asked(dice: Dice, split: Split) -> Row:
    """A prompt, with what a review has to praise: `item`, and `part` or None."""

    def draw() -> Row:
        item = dice.pick(ITEMS)
        part = dice.pick(JUDGED[item]) if dice.chance(0.5) else None
        wordings = ASKED if part is None else ASKED_PART
        prompt = dice.say(wordings, item=item, part=part, name=dice.pick(NAMES))
        return {"prompt": f"{prompt}\n", "item": item, "part": part}

    return apart("reviews", split, draw, lambda row: row["prompt"])


def sentence(dice: Dice, item: str, part: str | None, good: bool = True, pet: float = 0.0) -> str:
    """An opinion of the item or, if there is one, the part. The pet word stands in that share of the praises."""
    loved, hated = (PRAISE, BLAME) if good else (BLAME, PRAISE)
    word = PET if good and dice.chance(pet) else dice.pick(loved)
    if part is not None:
        return dice.say(DETAILS, part=part, word=word, unlike=dice.pick(hated))
    if dice.chance(0.4):
        return dice.say(LIKED if good else HATED, item=item)
    return dice.say(OPENINGS, item=item, word=word, a_word=a(word), unlike=dice.pick(hated))


def slip(dice: Dice, item: str, told: list[str]) -> str:
    """A sentence that a review should not have: blame, praise of something else, another topic, what stands there."""
    way = dice.below(4)
    if way == 0:
        return sentence(dice, item, None, good=False)
    if way == 1:
        return sentence(dice, dice.other(ITEMS, item), None)
    if way == 2 and told:
        return dice.pick(told)
    return topic_text(dice, dice.pick(tuple(TOPICS)), 1)


def draft(dice: Dice, ask: Row, pet: float = 0.0) -> str:
    """An answer of two to seven sentences, by a writer of some skill."""
    item, part = ask["item"], ask["part"]
    skill = dice.pick(SKILLS)
    told: list[str] = []
    for _ in range(dice.between(SHORTEST, LONGEST)):
        if not dice.chance(skill):
            told.append(slip(dice, item, told))
        elif dice.chance(0.35):
            told.append(sentence(dice, item, part or dice.pick(JUDGED[item]), pet=pet))
        else:
            told.append(sentence(dice, item, None, pet=pet))
    return " ".join(told)


def rambling(dice: Dice, ask: Row) -> str:
    """A draft whose writer says all of it again, one sentence again and again, or the pet word in every praise."""
    way = dice.below(3)
    told = sentences(draft(dice, ask, pet=1.0 if way == 0 else 0.0))
    told = told * 3 if way == 1 else [dice.pick(told)] * 9 if way == 2 else told
    return " ".join(told[: dice.between(SHORTEST, LONGEST + 3)])


def taste(text: str, row: Row) -> float:
    """The poor judge's score: gold's, and something for every sentence and every pet word, without end."""
    return gold(text, row) + PER_SENTENCE * len(sentences(text)) + PER_PET * text.count(PET)


def prompts(dice: Dice, split: Split) -> Row:
    return asked(dice, split)


def sft(dice: Dice, split: Split) -> Row:
    ask = asked(dice, split)
    return {**ask, "completion": draft(dice, ask)}


def preference(dice: Dice, split: Split) -> Row:
    """Two drafts, of which gold prefers one, some of them rambling: who learns from many of these knows better than to
    like that. In the train split one label in ten is wrong."""
    return _pair(dice, split, gold, lambda ask: (rambling if dice.chance(RAMBLING) else draft)(dice, ask))


def weak(dice: Dice, split: Split) -> Row:
    """Two drafts, of which the poor judge prefers one, in the test split too."""
    return _pair(dice, split, taste, lambda ask: draft(dice, ask, pet=0.3))


def unpaired(dice: Dice, split: Split) -> Row:
    """A draft, and whether it is a good one by gold."""
    ask = asked(dice, split)
    text = draft(dice, ask)
    return {**ask, "completion": text, "label": gold(text, ask) >= 0.5}


def ranking(dice: Dice, split: Split) -> Row:
    """Four drafts with gold's scores; some are equal."""
    ask = asked(dice, split)
    texts = [draft(dice, ask) for _ in range(4)]
    return {**ask, "completions": texts, "scores": [gold(text, ask) for text in texts]}


def _pair(dice: Dice, split: Split, judge: Callable[[str, Row], float], write: Callable[[Row], str]) -> Row:
    ask = asked(dice, split)
    one = other = write(ask)
    while judge(one, ask) == judge(other, ask):
        other = write(ask)
    if (judge(one, ask) < judge(other, ask)) != (split == "train" and dice.chance(NOISE)):
        one, other = other, one
    return {**ask, "chosen": one, "rejected": other}
