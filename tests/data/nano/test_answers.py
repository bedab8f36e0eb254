# SPDX-License-Identifier: Apache-2.0
"""Every answer is right: small judges that read the rendered text and know nothing of how the rows are made."""

import re

import pytest

from jaxpost.data.nano import TASKS, world
from jaxpost.data.nano import language as lang
from jaxpost.data.nano.scenes.opinions import BLAME, EVENTS, PRAISE
from jaxpost.data.nano.scenes.subjects import TOPICS

NAME = "|".join(world.NAMES)
THING = "|".join(world.THINGS)
PLACE = "|".join(world.PLACES)
COLOUR = "|".join(world.COLOURS)
NUMBER = {word: number for number, word in enumerate(world.NUMBER_WORDS)}
KIND_OF = {word: kind for kind, group in world.KINDS.items() for word in group}
ANIMAL = {animal.name: animal for animal in world.ANIMALS}
OPPOSITE = {a: b for pair in lang.OPPOSITES for a, b in (pair, pair[::-1])}
SYNONYM = {a: b for pair in lang.SYNONYMS for a, b in (pair, pair[::-1])}


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def items(row):
    return row["list"].split(", ")


def joined(words):
    return ", ".join(map(str, words))


def other_of(row):
    return row["b"] if row["answer"] == row["a"] else row["a"]


def count_up(row):
    """Follow a counting story sentence by sentence."""
    total = 0
    for sentence in row["text"].split(". "):
        (number,) = numbers(sentence)
        loses = re.match(r"(She|He) (loses|gives|sells)", sentence) or re.match(rf"({NAME}) takes", sentence)
        total += -number if loses else number
    return str(total)


def winner(row):
    """The name with the largest number, for lines like "Anna is 12" and "Anna has 12 balls"."""
    return max(re.findall(rf"({NAME}) (?:is|has) (\d+)", row["text"]), key=lambda found: int(found[1]))[0]


def scenes(text):
    """(name, place, colour, thing) of each errand, whatever the order of its words."""
    found = []
    for chunk in re.split(rf"(?=In the (?:{PLACE}) (?:{NAME})|(?<!\w )\b(?:{NAME})\b)", text):
        parts = [re.search(rf"\b({kind})\b", chunk) for kind in (NAME, PLACE, COLOUR, THING)]
        if all(parts):
            found.append(tuple(part[1] for part in parts))
    return found


def one_scene(row, **known):
    fields = ("name", "place", "colour", "thing")
    (scene,) = [s for s in scenes(row["text"]) if all(s[fields.index(key)] == value for key, value in known.items())]
    return dict(zip(fields, scene, strict=True))


def claim_holds(row):
    told = scenes(row["text"])
    claimed = [re.search(rf"\b({kind})\b", row["claim"]) for kind in (NAME, PLACE, COLOUR, THING)]
    wanted = [part[1] if part else None for part in claimed]
    holds = any(all(w in (None, s) for w, s in zip(wanted, scene, strict=True)) for scene in told)
    return "true" if holds else "false"


def what_follows(row):
    (told,) = scenes(row["text"])
    claim, (name, place, colour, thing) = row["claim"], told
    if claim in (f"{name} had a {thing}.", f"{name} was in the {place}.", f"The {thing} was {colour}."):
        return "yes"
    if claim in (f"{name} had no {thing}.", f"{name} was not in the {place}."):
        return "no"
    return "no" if re.fullmatch(rf"The {thing} was ({COLOUR})\.", claim) else "maybe"


def last_owner(row):
    owner = None
    for sentence in row["text"].split(". "):
        people = re.findall(rf"\b({NAME})\b", sentence)
        owner = people[-1] if re.search("gave|handed", sentence) else people[0]
    return owner


def visits(row):
    return re.findall(rf"\b{row['name']}\b \w+ to the ({PLACE})", row["text"])


def sign(row):
    """Praise counts up, blame counts down, and "not" turns a word around."""
    text = row["text"].lower()
    score = 0
    for words, value in ((PRAISE, 1), (BLAME, -1)):
        for word in words:
            score += value * len(re.findall(rf"(?<!not )\b{word}\b", text))
            score -= value * len(re.findall(rf"not {word}\b", text))
    return score > 0


def record_of(row):
    return dict(line.split(": ") for line in row["record"].splitlines())


def is_odd(row):
    kinds = [KIND_OF[word] for word in items(row)]
    return next(word for word in items(row) if kinds.count(KIND_OF[word]) == 1)


def asked(question):
    starts = {"Who": "person", "Which friend": "person", "Where": "place", "In which town": "place", "When": "time"}
    starts |= {"From": "place", "On": "time", "In which month": "time", "At": "time", "How": "number"}
    starts |= {"Why": "reason", "For": "reason"}
    return next(kind for start, kind in starts.items() if question.startswith(start))


def more_or_less(row):
    (count,), (limit,) = numbers(row["text"]), numbers(row["claim"])
    return "yes" if (count > limit if " more " in row["claim"] else count < limit) else "no"


def kind_claimed(row):
    word = next(word for word in re.findall(r"\w+", row["text"])[::-1] if word in KIND_OF)
    return "true" if re.search(rf"\ban? {KIND_OF[word]}\.", row["claim"]) else "false"


def mood_of(row):
    text = row["text"]
    for felt, events in EVENTS.items():
        for event in events:
            if re.fullmatch(re.sub(r"{\w+}", r"\\w+", event), text):
                return felt
    raise AssertionError(text)


def topic_of(row):
    for topic, lines in TOPICS.items():
        patterns = [re.sub(r"{\w+}", "[a-zA-Z0-9 ]+", line).replace("?", r"\?") for line in lines]
        if any(re.match(pattern, row["text"]) for pattern in patterns):
            return topic
    raise AssertionError(row["text"])


def other_job(row):
    return next(job for job, does, _ in world.JOBS if does == row["does"])


def told_value(row):
    words = re.findall(r"\w+", row["text"])
    if row["key"] == "age":
        return next(word for word in words if word.isdigit())
    kind = {"job": "job", "pet": "animal"}[row["key"]]
    return next(word for word in words if KIND_OF.get(word) == kind)


# What the answer must be, computed from the row's other fields.
EXPECTED = {
    "add": lambda r: str(int(r["a"]) + int(r["b"])),
    "subtract": lambda r: str(int(r["a"]) - int(r["b"])),
    "multiply": lambda r: str(int(r["a"]) * int(r["b"])),
    "next_number": lambda r: str(2 * numbers(r["row"])[-1] - numbers(r["row"])[-2]),
    "story_sum": count_up,
    "larger_number": lambda r: str(max(map(int, r["options"]))),
    "bigger_thing": lambda r: max(r["options"], key=world.SIZES.get),
    "smaller_thing": lambda r: min(r["options"], key=world.SIZES.get),
    "comes_first": lambda r: min(r["options"], key=(world.DAYS + world.MONTHS).index),
    "older_person": winner,
    "has_most": winner,
    "list_item": lambda r: items(r)[["first", "second", "third", "fourth", "last"].index(r["position"]) % 4
                                    if r["position"] != "last" else -1],
    "list_count": lambda r: world.NUMBER_WORDS[len(items(r))],
    "list_without": lambda r: joined(word for word in items(r) if word != r["gone"]),
    "list_reverse": lambda r: joined(reversed(items(r))),
    "list_sort": lambda r: joined(sorted(items(r))),
    "list_sort_numbers": lambda r: joined(sorted(numbers(r["list"]))),
    "list_has": lambda r: "yes" if r["word"] in items(r) else "no",
    "spell": lambda r: " ".join(r["word"]),
    "join_letters": lambda r: r["letters"].replace(" ", ""),
    "one_letter": lambda r: r["word"][0 if r["position"] == "first" else -1],
    "word_length": lambda r: world.NUMBER_WORDS[len(r["word"])],
    "backwards": lambda r: " ".join(r["word"])[::-1],
    "plural": lambda r: dict(lang.PLURALS)[r["word"]],
    "past": lambda r: dict(lang.PAST)[r["word"]],
    "opposite": lambda r: OPPOSITE[r["word"]],
    "similar": lambda r: SYNONYM[r["word"]],
    "odd_one": is_odd,
    "opposite_pair": lambda r: "yes" if OPPOSITE[r["a"]] == r["b"] else "no",
    "analogy": lambda r: OPPOSITE[r["c"]] if r["a"] in OPPOSITE else ANIMAL[r["c"]].young,
    "word_kind": lambda r: KIND_OF[r["word"]],
    "kind_example": lambda r: next(word for word in r["options"] if KIND_OF[word] == r["kind"]),
    "text_topic": topic_of,
    "question_kind": lambda r: asked(r["question"]),
    "can_do": lambda r: "yes" if r["ability"] in ANIMAL[r["a_animal"].split()[1]].can else "no",
    "home_of": lambda r: ANIMAL[r["animal"]].home,
    "used_for": lambda r: next(tool for tool, use in world.USES if use == r["use"]),
    "job_of": other_job,
    "review_sentiment": lambda r: "positive" if sign(r) else "negative",
    "recommend": lambda r: "yes" if sign(r) else "no",
    "better_review": lambda r: re.search(rf"[Tt]he (\w+) was ({'|'.join(PRAISE)})", r["text"])[1],
    "mood": mood_of,
    "follows": what_follows,
    "kind_follows": kind_claimed,
    "number_follows": more_or_less,
    "read_who": lambda r: one_scene(r, thing=r["thing"])["name"],
    "read_where": lambda r: one_scene(r, name=r["name"])["place"],
    "read_colour": lambda r: one_scene(r, thing=r["thing"])["colour"],
    "read_true": claim_holds,
    "who_has": last_owner,
    "where_is": lambda r: visits(r)[-1],
    "went_first": lambda r: visits(r)[0],
    "who_is_meant": lambda r: next(name for name in r["options"] if world.PRONOUN[name] == r["pronoun"]),
    "person_field": lambda r: record_of(r)[r["key"]],
    "text_field": told_value,
}  # fmt: skip

# Free text, of which only the substance is checked.
FREE = {
    "same_meaning",
    "closest_meaning",
    "rewrite",
    "read_why",
    "person_text",
    "weather_text",
    "words_text",
    "makes_sense",
}


def test_every_task_has_a_judge():
    assert EXPECTED.keys() | FREE == TASKS.keys()
    assert not EXPECTED.keys() & FREE


@pytest.mark.parametrize("name", EXPECTED)
def test_answers_are_right(name):
    for split in ("train", "test"):
        for row in TASKS[name].source(split)[:120]:
            assert row["answer"] == EXPECTED[name](row), row


@pytest.mark.parametrize("name", ["person_text", "weather_text"])
def test_a_text_says_all_that_is_in_its_record(name):
    for row in TASKS[name].source("train")[:200]:
        assert all(value in row["answer"] for value in record_of(row).values()), row


def test_a_sentence_uses_its_words():
    for row in TASKS["words_text"].source("train")[:200]:
        name, _, thing, place = row["words"].split(", ")
        assert all(word in row["answer"] for word in (name, thing, place)), row


def test_a_reason_is_the_persons_own():
    for row in TASKS["read_why"].source("train")[:200]:
        she, _, felt = row["answer"].split()
        assert world.PRONOUN[row["name"]] == she
        sentences = row["text"].split(". ")
        own = [
            " ".join(sentences[i : i + 2])
            for i, sentence in enumerate(sentences)
            if re.search(rf"\b{row['name']}\b", sentence)
        ]
        assert own and any(felt in sentence and row["deed"] in sentence for sentence in own), row


def test_paraphrases_keep_the_people_and_differ():
    for row in TASKS["rewrite"].source("train")[:200]:
        first, second = (sorted(set(re.findall(rf"\b({NAME})\b", row[key]))) for key in ("text", "answer"))
        assert row["text"] != row["answer"]
        assert set(second) <= set(first)
    for row in TASKS["same_meaning"].source("train")[:200]:
        assert row["first"] != row["second"]


def test_a_word_has_one_answer():
    for pairs in (lang.OPPOSITES, lang.SYNONYMS):
        words = [word for pair in pairs for word in pair]
        assert len(words) == len(set(words))
    for table in (lang.PLURALS, lang.PAST):
        firsts = [first for first, _ in table]
        assert len(firsts) == len(set(firsts))
    kinds = [word for group in world.KINDS.values() for word in group]
    assert len(kinds) == len(set(kinds))
    uses = [use for _, use in world.USES]
    assert len(uses) == len(set(uses))


def test_some_facts_that_everybody_knows():
    assert world.SIZES["ant"] < world.SIZES["cat"] < world.SIZES["cow"] < world.SIZES["whale"]
    assert "fly" in ANIMAL["owl"].can and "fly" not in ANIMAL["penguin"].can
    assert "swim" in ANIMAL["salmon"].can and "swim" not in ANIMAL["hen"].can
    assert dict(lang.PAST)["go"] == "went" and dict(lang.PLURALS)["mouse"] == "mice"
    assert OPPOSITE["hot"] == "cold" and OPPOSITE["cold"] == "hot"
