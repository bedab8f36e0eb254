# SPDX-License-Identifier: Apache-2.0
"""The report: one self-contained page out of whatever a run directory holds."""

import html
import json
import math
import re
from html.parser import HTMLParser

import pytest

from jaxpost.evals.panels import panels_of
from jaxpost.evals.report import settings, write_report
from jaxpost.evals.table import GROUPS, Evaluation, Row
from jaxpost.faults import Fault
from jaxpost.train.metrics import Writer, write_facts

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text and attributes."""

    def __init__(self, source: str):
        super().__init__()
        self.open, self.attributes, self.words, self.tags = [], [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open[-1:]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def page(run_dir) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "flan <1>"
    with Writer(run, tensorboard=False) as writer:
        for step in range(1, 301):
            writer.write(step, {"loss": 3 / step + 0.01 * (step % 5), "lr": 1e-4 * step, "constant": 5.0})
            if step % 100 == 0:
                writer.write(step, {"eval_loss": 4 / step})
    rows = (
        Row(GROUPS[0], "arithmetic", "sum", "exact", 0.10, 0.60, 100),
        Row(GROUPS[2], "entailment", "follows", "rank", 0.50, 0.51, 100),
    )
    Evaluation(rows, ("ROUGE is left out.",)).save(run)
    samples = [
        {"prompt": "1 + 1 = <script>alert(1)</script>\n", "before": "one", "after": " 2", "target": "2", "task": "sum"}
    ]
    (run / "generations.json").write_text(json.dumps(samples))
    (run / "config.json").write_text(json.dumps({"optim": {"lr": 3e-4, "name": "adamw"}, "targets": ["q", "v"]}))
    write_facts(run, {"devices": "1 x cpu", "tokens": 1234567})
    return run


def test_the_page_holds_every_part(run):
    text = page(run).text
    for part in ("flan <1>", "10.0", "60.0", "+50.0", "better", "no clear change", "entailment", "ROUGE is left out.",
                 "Loss", "Learning rate", "Constant: Constant 5.", "held out", "✓ as expected", "1 x cpu", "1,234,567",
                 "optim.lr", "0.0003", "adamw", '["q", "v"]'):  # fmt: skip
        assert part in text, part
    assert "Not in this page" not in text


def test_the_page_is_alone_and_small(run):
    source = write_report(run).read_text(encoding="utf-8")
    assert len(source.encode()) < 1_000_000
    parsed = Page(source)
    assert not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert not [value for name, value in parsed.attributes if name in ("src", "href")]
    assert "url(" not in source and "@import" not in source and "http" not in source
    assert "prefers-color-scheme: dark" in source


def test_texts_of_a_model_are_text_and_nothing_else(run):
    source = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in source
    assert html.escape("<script>alert(1)</script>") in source


@pytest.mark.parametrize(
    "name, words",
    [
        ("metrics.jsonl", "curves: there is no metrics.jsonl"),
        ("evals.json", "the before/after table: there is no evals.json"),
        ("generations.json", "sample generations: there is no generations.json"),
        ("config.json", "the configuration: there is no config.json"),
        ("run.json", "what the run ran on: there is no run.json"),
    ],
)
def test_a_part_that_is_missing_is_named(run, name, words):
    (run / name).unlink()
    assert words in page(run).text


@pytest.mark.parametrize(
    "name, words",
    [
        ("evals.json", "not a before/after table"),
        ("generations.json", "generations.json cannot be read"),
        ("config.json", "config.json cannot be read"),
    ],
)
def test_a_part_that_cannot_be_read_is_named(run, name, words):
    (run / name).write_text('{"torn')
    assert words in page(run).text


def test_a_part_of_another_form_is_named(run):
    (run / "generations.json").write_text("{}")
    assert "generations.json holds no list" in page(run).text


def test_no_run_is_a_fault(tmp_path):
    with pytest.raises(Fault, match=r"no run directory.*metrics\.jsonl"):
        write_report(tmp_path)


def test_resumed_torn_and_not_finite_records(tmp_path):
    lines = [{"step": s, "time": 1.8e9 + s, "loss": 2.0 if s != 3 else None} for s in (1, 2, 3, 4, 5)]
    lines += [{"step": s, "time": 1.8e9 + 100 + s, "loss": 7.0} for s in (4, 5, 6)]  # overlaps
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 7, "lo')
    parsed = page(tmp_path)
    assert "training not finite at 1 of 6 steps, first at 3" in parsed.text
    label = next(value for name, value in parsed.attributes if name == "aria-label")
    assert label.startswith("Loss: training 2 at step 1, 7 at step 6; training not finite")
    titles = re.findall(r"<title>(step [^<]*)</title>", (tmp_path / "report.html").read_text())
    assert "step 4\ntraining 7" in titles and "step 4\ntraining 2" not in titles


def test_a_loss_that_was_never_finite_is_drawn_as_such(tmp_path):
    with Writer(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"loss": math.nan})
    assert "no finite value" in page(tmp_path).text


def test_known_metrics_first_and_evaluation_beside_training():
    records = [{"step": 1, "time": 0.0, "zeta": 1.0, "lr": 2.0, "eval/loss": 4.0, "loss": 3.0, "note": "text"}]
    panels = panels_of(records)
    assert [p.title for p in panels] == ["Loss", "Learning rate", "Zeta"]
    assert [(s.name, s.values) for s in panels[0].series] == [("training", (3.0,)), ("held out", (4.0,))]


def test_many_generations_and_metrics_are_cut_and_counted(run):
    sample = {"prompt": "p" * 9000, "before": "b", "after": "a"}
    (run / "generations.json").write_text(json.dumps([sample] * 40))
    with Writer(run, step=400, tensorboard=False) as writer:
        for step in (301, 302):
            writer.write(step, {f"metric_{i:02}": float(step) for i in range(50)})
    parsed = page(run)
    assert "The first 24 of 40." in parsed.text and "(9,000 characters in all)" in parsed.text
    assert "Not drawn: Metric 30" in parsed.text
    assert (run / "report.html").stat().st_size < 1_000_000


def test_settings_are_dotted_names():
    nested = {"a": {"b": 1, "c": {}}, "d": [1, {"e": None}], "f": "text"}
    assert list(settings(nested)) == [("a.b", "1"), ("a.c", "{}"), ("d", '[1, {"e": null}]'), ("f", "text")]
