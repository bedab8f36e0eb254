# SPDX-License-Identifier: Apache-2.0
"""Principles, prompts and examples are files: read as they are meant; what is wrong with one is said with its place."""

import json

import pytest

from jaxpost.data import principles
from jaxpost.data.principles import Principle, files, ordered, plain, wording
from jaxpost.faults import Fault

ALL = ("critique", "revision", "judge")
PLACES = {
    "prompt": "What is {this}?",
    "answer": "No {idea}.",
    "request": "Is it rude?",
    "critique": "It is.",
    "answer_a": "One",
    "answer_b": "Two",
    "question": "Which is kinder?",
    "reasoning": "Well.",
}


@pytest.fixture
def file(tmp_path):
    def write(text, name="file.txt"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


def test_built_in_sets_can_be_read_and_say_what_they_are_given():
    kinds = [kind for kind in files.FILES if kind not in ("principles", "red_team") and "examples" not in kind]
    asked = 0
    for name in files.SETS:
        found = principles.read(name, ALL)
        assert len({one.name for one in found}) == len(found) > 3
        for kind in kinds:
            if not (files.HERE / name / files.FILES[kind]).exists():
                continue
            examples = name if (files.HERE / name / files.FILES.get(f"{kind}_examples", "none")).exists() else ""
            made = wording(kind, name, examples)
            said = made(**PLACES)
            last = said.prompt if isinstance(said.prompt, str) else said.prompt[-1]["content"]
            assert all(PLACES[place] in last for place in made.places) and bool(examples) == bool(made.examples)
            asked += 1
    assert asked == 9
    rows = [json.loads(line) for line in principles.located("general", "red_team").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) > 20


def test_a_paragraph_is_a_principle(file):
    path = file(
        "# remarks\n# more of them\n\nname: kind\ncritique: Is it\n  kind?\nrevision: Be kind.\n"
        "judge: Which is kinder?\n\n\n"
        "Be brief: say it\nin a word.\n# a remark\n\nJudge: Which is true?\n"
    )
    kind, brief, true = principles.read(path, ())
    assert kind == Principle("kind", "Is it\nkind?", "Be kind.", "Which is kinder?")
    assert brief.critique == brief.revision == brief.judge == "Be brief: say it\nin a word." and brief.name == "2"
    assert true == Principle("3", judge="Which is true?")
    lines = file('{"name": "kind", "judge": "Which?"}\n{"principle": "Be brief."}\n', "rows.jsonl")
    assert principles.read(lines, ("judge",)) == (
        Principle("kind", judge="Which?"),
        Principle("2", "Be brief.", "Be brief.", "Be brief."),
    )


@pytest.mark.parametrize(
    "text, name, message",
    [
        ("\n \n", "a.txt", "holds nothing but blank lines, where principles are to stand"),
        ("# one\n\n# two\n", "a.txt", "holds remarks only, and no principle"),
        ("Be kind.\n\nname: b\ncritique: Is it?\n", "a.txt", r"a.txt:3: the principle 'b' says nothing for the judge"),
        ("judge: Which?\njuge: That?\n", "a.txt", r"a.txt:1: a principle has no field 'juge'; did you mean judge"),
        ("judge: Which?\njudge: That?\n", "a.txt", r"a.txt:2: the principle says 'judge' twice"),
        ("judge:\n\n", "a.txt", r"the principle's field 'judge' is empty"),
        ("name: b\n", "a.txt", r"a.txt:1: the principle is empty"),
        ('{"judge": "a"}\n{"judge": 3}\n', "a.jsonl", r"a.jsonl:2: the principle's field 'judge' is empty or no text"),
    ],
)
def test_what_is_wrong_with_a_principle(file, text, name, message):
    with pytest.raises(Fault, match=message):
        principles.read(file(text, name), ("judge",))


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(Fault, match=r"no file .*none.txt \(principles\); give a path, or a built-in set: general"):
        principles.read(str(tmp_path / "none.txt"), ())
    with pytest.raises(Fault, match="the set 'nano' has no reasoning.txt; write your own file, .* that of general"):
        wording("reasoning", "nano")
    with pytest.raises(Fault, match="it is a directory"):
        wording("judge", str(tmp_path))


def test_a_text_and_its_solved_examples(file):
    rows = file(json.dumps({"prompt": "Hi {x}", "answer_a": "a", "answer_b": "b", "verdict": " A\n"}) + "\n", "e.jsonl")
    made = wording("judge", file("{prompt}\nA: {answer_a}\nB: {answer_b}\n{{brace}} Better:\n\n"), rows)
    assert made(prompt="Q", answer_a="{c}", answer_b="d", question="?").prompt == (
        "Hi {x}\nA: a\nB: b\n{brace} Better:\nA\n\nQ\nA: {c}\nB: d\n{brace} Better:\n"
    )
    goes_on = wording("judge", file("{answer_a}{answer_b} Better: (\\\n"))
    assert goes_on(answer_a="1", answer_b="2") == ("12 Better: (", "")


def test_a_conversation_and_how_its_answer_begins(file):
    rows = file('{"answer": "old", "request": "r", "critique": "bad"}\n', "e.jsonl")
    made = wording("critique", file("[system]\nBe brief.\n[user]\n{answer}\n{request}\n\n[assistant]\nIt is (\n"), rows)
    asked = made(answer="new", request="s", prompt="unused")
    assert asked.opening == "It is ("
    assert [(turn["role"], turn["content"]) for turn in asked.prompt] == [
        ("system", "Be brief."),
        ("user", "old\nr"),
        ("assistant", "It is (bad"),
        ("user", "new\ns"),
    ]


@pytest.mark.parametrize(
    "kind, text, message",
    [
        ("judge", "{answer_a} {answer_c}", r"nothing stands at \{answer_c\} in a judge prompt; did you mean answer_"),
        ("judge", "{answer_a}", r"a judge prompt must show the model \{answer_b\}, and this one does not"),
        ("judge", "{answer_a} {answer_b} {reasoning}", r"nothing stands at \{reasoning\} in a judge prompt"),
        ("reasoned_judge", "{answer_a} {answer_b}", r"a reasoned judge prompt must show the model \{reasoning\}"),
        ("critique", "{answer", "a brace that stands alone"),
        ("critique", "{answer!r}", "a place is a name between braces"),
        ("critique", "{} {answer}", "a place is a name between braces"),
        ("critique", "[user]\n\n[assistant]\n{answer}", r"nothing stands behind the line \[user\]"),
        ("critique", "[system]\n{answer}", "nobody asks in this conversation"),
        ("critique", " \n", "holds nothing but blank lines, where critique"),
    ],
)
def test_what_is_wrong_with_a_text(file, kind, text, message):
    with pytest.raises(Fault, match=message):
        wording(kind, file(text))


def test_an_example_lacks_what_the_text_shows(file):
    rows = file('{"answer": "a", "critique": "b"}\n{"answer": "a"}\n', "e.jsonl")
    with pytest.raises(Fault, match=r"e.jsonl:2: an example for .*file.txt needs the text 'critique'; it has answer"):
        wording("critique", file("{answer}"), rows)


def test_principles_are_drawn_by_number_alone():
    some = tuple(Principle(str(i)) for i in range(5))
    orders = [[one.name for one in ordered(some, 3, number)] for number in range(50)]
    assert all(sorted(order) == list("01234") for order in orders)
    assert orders == [[one.name for one in ordered(some, 3, number)] for number in range(50)]
    assert {order[0] for order in orders} == set("01234")
    assert orders != [[one.name for one in ordered(some, 4, number)] for number in range(50)]


def test_prompts_as_they_are_shown():
    turns = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": "Yes?"}]
    assert plain(" text\n") == "text" and plain(turns[:1]) == "Hi"
    assert plain(turns) == "User: Hi\n\nAssistant: Yes?"
