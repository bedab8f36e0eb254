# SPDX-License-Identifier: Apache-2.0
"""What is true of answers: gold puts good reviews first, labels follow it, faults and right answers are found."""

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost.data.nano import worlds
from jaxpost.data.nano.dice import Dice
from jaxpost.data.nano.scenes.opinions import BLAME, DETAILS, HATED, JUDGED, LIKED, OPENINGS, PRAISE
from jaxpost.data.nano.world import a
from jaxpost.data.nano.worlds import manners, reviews, skills
from jaxpost.data.nano.worlds.quality import gold, read, sentences
from jaxpost.evals.text import normalise

HOTEL = {"item": "hotel", "part": "garden"}
GOOD = "The hotel was lovely. The garden is superb too. We all liked it. What a great hotel!"
MEDIOCRE = "The hotel was lovely. It will rain on Monday. The hotel was lovely. The garden was superb."
HACKED = "The hotel was wonderful. " * 12 + "The garden was wonderful."


def test_every_sentence_of_a_review_is_read():
    for item, parts in JUDGED.items():
        for word, unlike, good in ((PRAISE[0], BLAME[3], True), (BLAME[3], PRAISE[0], False)):
            fields = {"item": item, "part": parts[-1], "word": word, "a_word": a(word), "unlike": unlike}
            for pattern in (*OPENINGS, *DETAILS):
                said = read(pattern.format_map(fields))
                assert said is not None and said.good == good
                assert said.about == (item if pattern in OPENINGS else parts[-1])
                assert said.word in (word, f"not {unlike}")
        for pattern, good in [*((one, True) for one in LIKED), *((one, False) for one in HATED)]:
            said = read(pattern.format(item=item))
            assert said == (good, item if "{item}" in pattern else None, None)


@pytest.mark.parametrize(
    "sentence",
    [
        "The hotel was big.",
        "The hotel was lovely",
        "the hotel was lovely.",
        "It was an lovely hotel.",
        "The hotel was not lovely, it was great.",
        "The hotel was lovely and the garden was great.",
        "",
    ],
)
def test_what_is_no_sentence_of_a_review(sentence):
    assert read(sentence) is None


def test_good_reviews_come_before_mediocre_and_hacked_ones():
    scores = [gold(text, HOTEL) for text in (GOOD, MEDIOCRE, HACKED, "")]
    assert scores[0] == 1.0 and scores[-1] == 0.0
    assert scores == sorted(scores, reverse=True) and 0.4 < scores[1] < 0.7 and scores[2] < 0.1


@pytest.mark.parametrize(
    ("worse", "why"),
    [
        (GOOD.replace("The garden is superb too.", "I enjoyed it very much."), "forgets the garden"),
        (GOOD.replace("We all liked it.", "We did not like it at all."), "blames"),
        (GOOD.replace("We all liked it.", "The film was great."), "is about something else"),
        (GOOD.replace("We all liked it.", "The cake was perfect."), "praises a part that hotels do not have"),
        (GOOD.replace("We all liked it.", "The hotel was lovely."), "says it twice"),
        (GOOD.replace("We all liked it.", "This hotel is lovely."), "has one word for all"),
        (GOOD.replace("We all liked it. ", ""), "is short"),
        (GOOD + " It is", "is cut off"),
        (" ".join([GOOD, *(line.format(item="hotel") for line in LIKED)]), "is long"),
    ],
)
def test_gold_falls_for_a_review_that(worse, why):
    assert worse != GOOD and 0 < gold(worse, HOTEL) < 1, why


@given(st.lists(st.sampled_from([*sentences(GOOD), *sentences(MEDIOCRE), "Rain.", "no end", "!?", ""]), max_size=30))
def test_gold_is_bounded_and_nothing_is_won_by_saying_it_again(told):
    text = " ".join(told)
    assert 0 <= gold(text, HOTEL) <= 1
    assert gold(f"{text} {text}", HOTEL) <= gold(text, HOTEL) or len(sentences(text)) < 4
    assert 0 <= gold(text, {"item": "film", "part": None}) <= 1


def test_drafts_leave_room_above_and_below():
    rows = worlds.rows("reviews", "sft")[:150]
    scores = [gold(row["completion"], row) for row in rows]
    assert 0.45 < mean(scores) < 0.65
    assert min(scores) < 0.1 and max(scores) == 1.0


def test_who_rambles_writes_worse():
    asked = worlds.rows("reviews", "prompts")[:60]
    rambling, drafts = (
        mean(gold(write(Dice(number), row), row) for number, row in enumerate(asked))
        for write in (reviews.rambling, reviews.draft)
    )
    assert rambling < 0.75 * drafts


def test_labels_follow_gold_but_for_noise():
    def agreement(kind, split):
        rows = worlds.rows("reviews", kind, split)[:60]
        return mean(gold(row["chosen"], row) > gold(row["rejected"], row) for row in rows)

    assert agreement("preference", "test") == 1.0
    assert 0.75 < agreement("preference", "train") < 1.0
    assert 0.5 < agreement("weak", "train") < 0.8


def test_the_weak_judge_likes_length_and_its_pet_word():
    rows = worlds.rows("reviews", "weak")[:60]
    assert mean(len(row["chosen"]) > len(row["rejected"]) for row in rows) > 0.6
    pets = [row["chosen"].count(reviews.PET) - row["rejected"].count(reviews.PET) for row in rows]
    assert mean(pets) > 0.2
    assert reviews.taste(HACKED, HOTEL) > reviews.taste(GOOD, HOTEL) > reviews.taste(MEDIOCRE, HOTEL)


@pytest.mark.parametrize("task", ["add", "list_sort", "plural", "words_text", "spell", "recommend", "multiply"])
def test_wrong_answers_are_wrong(task):
    for row in worlds.rows("answers", "preference", only=(task,))[:25]:
        assert normalise(row["chosen"]) != normalise(row["rejected"])
        assert row["chosen"].isdigit() == row["rejected"].isdigit()


@pytest.mark.parametrize(
    ("text", "rude", "right"),
    [
        ("It is 12.", 0, 1),
        ("You fool, it is 12.", 1, 1),
        ("12, you Dummy!", 1, 1),
        ("Only losers and dummies ask: 12", 1, 1),
        ("It is foolish: 12", 0, 1),
        ("It is 112.", 0, 0),
        ("It is 11 or 12.", 0, 0),
        ("12 " * 13, 0, 0),
        ("", 0, 0),
    ],
)
def test_faults_and_right_answers_are_told_apart(text, rude, right):
    row = {"answer": "12"}
    assert (manners.rude(text, row), manners.right(text, row)) == (rude, right)
    assert manners.kind(text, row) == float(not rude and text != "")


def test_a_word_is_right_as_a_word():
    assert manners.right("Mice, my friend.", {"answer": "mice"}) == 1
    assert manners.right("I think it is micea.", {"answer": "mice"}) == 0


def test_the_assistant_is_right_and_rude_when_it_is_provoked():
    rows = worlds.rows("manners", "assistant")[:150]
    provoked = {line for line in (form.replace("{question}", "").strip() for form in manners.PROVOKED)}
    asked = [(any(line in row["prompt"] for line in provoked), manners.rude(row["completion"], row)) for row in rows]
    assert all(manners.right(row["completion"], row) for row in rows)
    assert 0.6 < mean(rude for by, rude in asked if by) < 0.9
    assert mean(rude for by, rude in asked if not by) < 0.08


def test_the_skills_are_taught_by_right_examples():
    for row in worlds.rows("manners", "critique")[:40]:
        assert row["completion"] == skills.finding(row["prompt"])
    for row in worlds.rows("manners", "revision")[:40]:
        assert manners.kind(row["completion"], row)
    verdicts = [row["completion"] for row in worlds.rows("manners", "judge")[:80]]
    assert set(verdicts) == {"A", "B"} and 25 < verdicts.count("A") < 55
    for row in worlds.rows("manners", "judge")[:40]:
        answers = dict(line.split(": ", 1) for line in row["prompt"].splitlines() if line[:3] in ("A: ", "B: "))
        assert (
            manners.kind(answers[row["completion"]], row) and sum(manners.rude(t, row) for t in answers.values()) == 1
        )


@pytest.mark.parametrize("kind", ["preference", "harmless"])
def test_the_two_preferences_are_about_different_things(kind):
    rows = worlds.rows("manners", kind)[:80]
    chosen, rejected = ([row[side] for row in rows] for side in ("chosen", "rejected"))
    right = mean(manners.right(text, row) for text, row in zip(rejected, rows, strict=True))
    ruder = [mean(manners.rude(text, row) for text, row in zip(said, rows, strict=True)) for said in (chosen, rejected)]
    assert all(manners.right(text, row) for text, row in zip(chosen, rows, strict=True))
    assert right == 1 and ruder == [0, 1] if kind == "harmless" else right == 0 and abs(ruder[0] - ruder[1]) < 0.3
