# SPDX-License-Identifier: Apache-2.0
"""What the progress line says, on a terminal and in a log, with a clock that the test turns."""

import io
import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxpost.train import progress
from jaxpost.train.progress import Progress, Throughput, duration, peak_flops, status, track


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log():
    return Console(file=io.StringIO(), force_terminal=False)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()


def test_throughput_leaves_compilation_and_the_first_step_out(clock):
    rate = Throughput(clock)
    clock.now += 60  # compiles
    rate.update(1, 500)
    assert rate.tokens_per_second is None and rate.seconds_left(10) is None
    for step in (2, 3):
        clock.now += 0.5
        rate.update(step, 500)
    assert rate.tokens_per_second == pytest.approx(1000)
    assert rate.seconds_left(10) == pytest.approx(3.5)


def test_pauses_slow_the_run_but_not_its_throughput(clock):
    rate = Throughput(clock)
    rate.update(1, 100)
    clock.now += 1
    rate.update(2, 100)
    rate.pause()
    clock.now += 8
    rate.resume()
    clock.now += 1
    rate.update(3, 100)
    assert rate.tokens_per_second == pytest.approx(100)
    assert rate.seconds_left(5) == pytest.approx(10)  # 2 steps of 5 s


def test_throughput_follows_a_change_of_pace(clock):
    rate = Throughput(clock)
    for step in range(200):
        clock.now += 1.0 if step < 100 else 0.1
        rate.update(step, 100)
    assert rate.tokens_per_second == pytest.approx(1000)


def test_a_log_gets_the_first_line_one_every_ten_seconds_and_the_last(clock, log):
    with Progress(100, console=log, clock=clock) as bar:
        for step in range(1, 101):
            clock.now += 0.25
            bar.update(step, tokens=50, loss=100 / step)
    shown = [int(re.match(r"step (\d+)/100 ", line)[1]) for line in lines(log)]
    assert shown == [1, 41, 81, 100]
    assert lines(log)[1] == "step 41/100 (41%)  loss 2.4390  200 tok/s  0:15 left"
    assert lines(log)[-1] == "step 100/100 (100%)  loss 1.0000  200 tok/s"


def test_mfu_is_shown_when_both_figures_are_known(clock, log):
    with Progress(10, flops_per_token=4e9, peak=8e12, every=0, console=log, clock=clock) as bar:
        for step in (1, 2):
            clock.now += 1
            bar.update(step, tokens=1000)
    assert bar.mfu == pytest.approx(0.5)
    assert "MFU 50.0%" in lines(log)[-1]
    assert "MFU" not in lines(log)[0]


def test_a_loss_that_is_not_finite_is_shown_as_it_is(clock, log):
    with Progress(2, console=log, clock=clock) as bar:
        bar.update(1, loss=math.nan)
    assert lines(log) == ["step 1/2 (50%)  loss nan"]


def test_a_resumed_run_counts_from_where_it_was(clock, log):
    with Progress(10, start=6, every=0, console=log, clock=clock) as bar:
        for step in (7, 8):
            clock.now += 2
            bar.update(step, tokens=10)
    assert lines(log)[-1] == "step 8/10 (80%)  5 tok/s  0:04 left"


def test_a_terminal_gets_one_line_that_fits(clock):
    terminal = Console(
        file=io.StringIO(), force_terminal=True, width=100, color_system=None, _environ={"TERM": "xterm"}
    )
    with Progress(100, console=terminal, clock=clock) as bar:
        for step in range(1, 51):
            clock.now += 0.5
            bar.update(step, tokens=500, loss=2.0)
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.file.getvalue())
    last = re.split(r"[\r\n]+", screen.strip())[-1]
    assert "50/100" in last and "loss 2.0000  1,000 tok/s  0:25 left" in last
    assert len(last) <= 100


def test_status_says_what_happens_and_stops_the_throughput_clock(clock, log):
    with Progress(10, every=0, console=log, clock=clock) as bar:
        bar.update(1, tokens=100)
        with bar.status("evaluating"):
            clock.now += 30
        clock.now += 1
        bar.update(2, tokens=100)
    assert lines(log)[1] == "evaluating ..."
    assert bar.tokens_per_second == pytest.approx(100)


def test_status_in_a_log_says_how_long_a_long_phase_took(log, monkeypatch):
    times = iter([0.0, 1.0, 10.0, 85.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(times)))
    with status("loading", log):
        pass
    with status("compiling", log):
        pass
    assert lines(log) == ["loading ...", "compiling ...", "compiling: 1:15"]


def test_a_failing_phase_raises_through_status(log):
    with pytest.raises(RuntimeError, match="inside"), status("loading", log):
        raise RuntimeError("inside")


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_by_the_names_that_devices_give_themselves(kind, peak):
    assert peak_flops(kind) == peak


def test_waiting_for_data_is_told_when_it_matters(clock, log):
    with Progress(10, every=0, console=log, clock=clock) as bar:
        for step, waited in ((1, None), (2, 0.04), (3, 0.31)):
            clock.now += 1
            bar.update(step, tokens=1000, waited=waited)
    assert ["waiting for data" in line for line in lines(log)] == [False, False, True]
    assert "waiting for data 31%" in lines(log)[-1]


def test_items_are_passed_on_and_counted(log):
    assert list(track(iter("abc"), 3, "cleaning", log)) == ["a", "b", "c"]
    assert lines(log) == ["cleaning (3) ..."]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    assert list(track(iter("abc"), 3, "cleaning", terminal)) == ["a", "b", "c"]
    assert "cleaning" in terminal.file.getvalue()


def test_durations():
    assert [duration(s) for s in (0, 7.4, 754, 3723, 273845)] == ["0:00", "0:07", "12:34", "1:02:03", "3 d 04:04:05"]
