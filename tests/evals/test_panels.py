# SPDX-License-Identifier: Apache-2.0
"""Panels: what is measured, in people's words, together and in the order in which it is read."""

from jaxpost.evals.panels import KNOWN, compared, panels_of


def record(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "time": 0.0, **values}


RL = record(1, loss=0.1, lr=1e-3, kl=2.0, reward=0.5, ended=1.0, data_wait=0.9, sampler_gap=0.2, mean_sampler_gap=0.1)
SOURCES = {"reward/judge": 0.5, "reward/gold": 0.2, "eval_reward/gold": 0.3, "eval_reward/judge": 0.6}


def test_rewards_and_kl_come_first_and_every_source_stands_in_one_panel():
    panels = panels_of([{**RL, **SOURCES}])
    assert [p.title for p in panels[:4]] == ["Reward", "Reward by source", "KL from the start (nats an answer)", "Loss"]
    lines = [(s.name, s.values[0], s.colour, s.dash) for s in panels[1].series]
    assert lines == [
        ("gold", 0.2, 0, 0),
        ("gold, held out", 0.3, 0, 1),
        ("judge", 0.5, 1, 0),
        ("judge, held out", 0.6, 1, 1),
    ]


def test_what_is_one_quantity_shares_a_panel_whatever_is_there_of_it():
    (panel,) = [p for p in panels_of([RL]) if p.title.startswith("Sampler and trainer")]
    assert [(s.name, s.values) for s in panel.series] == [("largest", (0.2,)), ("mean", (0.1,))]
    (panel,) = [p for p in panels_of([record(1, mean_sampler_gap=0.1)])]
    assert [s.name for s in panel.series] == ["mean"]


def test_accuracy_waiting_and_predictions_are_called_what_they_are():
    def titles(*names: str) -> list[str]:
        return [p.title for p in panels_of([record(1, **dict.fromkeys(names, 0.5))])]

    assert titles("accuracy", "predictions") == ["Token accuracy", "Trained tokens a step"]
    assert titles("accuracy", "margin", "predictions") == [
        "Preferences told apart",
        "Margin of the better answer (nats)",
        "Trained answers a step",
    ]
    assert titles("data_wait") == ["Share of the time waiting for data"]
    assert titles("data_wait", "ended")[1] == "Share of the time sampling answers"


def test_every_panel_that_is_known_can_be_reached_by_a_metric():
    for key, known in KNOWN.items():
        metric = {"told_apart": "accuracy", "reward/": "reward/x"}.get(key, key)
        extra = {"margin": 0.1} if key == "told_apart" else {}
        assert known.title in [p.title for p in panels_of([record(1, **{metric: 0.5}, **extra)])], key


def test_runs_are_compared_by_what_was_held_out_where_all_of_them_have_it():
    held = [record(0, eval_loss=3.0), record(1, loss=2.5), record(2, loss=2.0, eval_loss=2.1)]
    plain = [record(1, loss=2.4), record(2, loss=1.9)]
    both = compared({"a": held, "b": held}, {"a": 0, "b": 3})
    assert [(p.title, [(s.name, s.values, s.colour) for s in p.series]) for p in both] == [
        ("Loss, held out", [("a", (3.0, 2.1), 0), ("b", (3.0, 2.1), 3)])
    ]
    mixed = compared({"a": held, "b": plain, "c": [record(1, other=1.0)]}, {"a": 0, "b": 1, "c": 2})
    assert [(p.title, [(s.name, s.values) for s in p.series]) for p in mixed] == [
        ("Loss", [("a", (2.5, 2.0)), ("b", (2.4, 1.9))])
    ]
    sources = compared({"a": [{**RL, **SOURCES}], "b": [{**RL, **SOURCES}]}, {"a": 0, "b": 1})
    assert [p.title for p in sources[:3]] == ["Reward", "Reward by source: gold", "Reward by source: judge"]
