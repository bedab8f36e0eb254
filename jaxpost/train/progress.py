# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run runs: one line that moves on a terminal, lines now and then in a log."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, SupportsFloat

from rich import progress as bars
from rich.console import Console

from jaxpost.data.sources.stored import watched

# Dense bf16 FLOP/s of one JAX device, by the start of its `device_kind`; the first that fits counts.
# NVIDIA: data sheets of H200, H100 and A100 (their figures "with sparsity" halved).
# TPU: cloud.google.com/tpu/docs, system architecture, "peak compute per chip (bf16)".
PEAKS = (
    ("NVIDIA H200 NVL", 835.5e12),
    ("NVIDIA H200", 989.5e12),
    ("NVIDIA H100 NVL", 835.5e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989.5e12),
    ("NVIDIA GH200", 989.5e12),
    ("NVIDIA A100", 312e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),  # v5p names itself "TPU v5"
    ("TPU v4 lite", 138e12),  # v4i: Jouppi et al. 2021, table 1
    ("TPU v4", 275e12),
)
WINDOW = 50  # updates over which throughput is averaged
WAITED = 0.05  # from this share of the time on it is said that data are waited for


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bf16 FLOP/s of one such device, or None if it is not in the table."""
    return next((peak for name, peak in PEAKS if device_kind.startswith(name)), None)


class Throughput:
    """Tokens and steps by the second, from the first update on: what came before it is compilation and warm-up.

    Averaged over the last updates. Time spent between `pause` and `resume` (evaluating, saving) does not count as
    training, but it does when the time left is estimated.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._recent: deque[tuple[float, int, int]] = deque(maxlen=WINDOW + 1)  # training seconds, step, tokens so far
        self._begun: tuple[float, int] | None = None
        self._latest: tuple[float, int] = (0.0, 0)
        self._tokens = 0
        self._paused = 0.0
        self._pause: float | None = None

    def update(self, step: int, tokens: int) -> None:
        """Step `step` is done; it and the steps since the last update had so many tokens."""
        now = self._clock()
        self._tokens += tokens
        if self._begun is None:
            self._begun = now, step
        self._latest = now, step
        self._recent.append((now - self._paused, step, self._tokens))

    def pause(self) -> None:
        self._pause = self._clock()

    def resume(self) -> None:
        if self._pause is not None and self._begun is not None:
            self._paused += self._clock() - self._pause
        self._pause = None

    @property
    def tokens_per_second(self) -> float | None:
        """None until there are two updates."""
        if len(self._recent) < 2:
            return None
        (begun, _, before), (now, _, after) = self._recent[0], self._recent[-1]
        return (after - before) / max(now - begun, 1e-9)

    def seconds_left(self, total_steps: int) -> float | None:
        """At the pace of the whole run so far, pauses included."""
        if self._begun is None or self._latest[1] <= self._begun[1]:
            return None
        pace = (self._latest[0] - self._begun[0]) / (self._latest[1] - self._begun[1])
        return max(0, total_steps - self._latest[1]) * pace


class Progress:
    """Shows how far a run is: step, loss, tokens/s, MFU and time left.

    A context manager. On a terminal one line is kept up to date; elsewhere (a file, a pipe, a scheduler's log) a line
    with the same facts is written for the first update, then every `every` seconds, and for the last step.
    `flops_per_token` is the model arithmetic that a trained token takes, and `peak` the FLOP/s of all devices together;
    MFU is shown when both are known. What `update` gets as a loss may be something else that `shows` names, and the
    source be one that `waits` says. Processes other than the first pass `Console(quiet=True)`.
    """

    def __init__(
        self,
        total_steps: int,
        start: int = 0,
        *,
        flops_per_token: float | None = None,
        peak: float | None = None,
        every: float = 10.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        shows: str = "loss",
        waits: str = "waiting for data",
    ):
        self._total, self._step = total_steps, start
        self._shows, self._waits = shows, waits
        self._flops_per_token, self._peak, self._every = flops_per_token, peak, every
        self._console = console or Console()
        self._clock = clock
        self._throughput = Throughput(clock)
        self._loss: float | None = None
        self._waited: float | None = None
        self._last_line: float | None = None
        self._bar = _bar(self._console) if moves(self._console) else None
        if self._bar is not None:
            self._task = self._bar.add_task("training", total=total_steps, completed=start, facts="")

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.stop()

    @property
    def tokens_per_second(self) -> float | None:
        """Of the last updates, compilation and pauses left out; None until there are two."""
        return self._throughput.tokens_per_second

    @property
    def mfu(self) -> float | None:
        """Model FLOP utilisation: the share of the devices' peak that went into the model's own arithmetic."""
        rate = self.tokens_per_second
        if rate is None or self._flops_per_token is None or not self._peak:
            return None
        return rate * self._flops_per_token / self._peak

    def update(
        self, step: int, tokens: int = 0, loss: SupportsFloat | None = None, waited: float | None = None
    ) -> None:
        """Step `step` is done. `tokens` counts those of the steps since the last update; a loss not given stays.
        `waited` is the share of the time that went by waiting for data."""
        self._step, self._waited = step, waited
        if loss is not None:
            self._loss = float(loss)
        self._throughput.update(step, tokens)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=self.facts())
            return
        now = self._clock()
        if self._last_line is None or now - self._last_line >= self._every or step >= self._total:
            self._last_line = now
            share = f" ({100 * step / self._total:.0f}%)" if self._total else ""
            _line(self._console, f"step {step}/{self._total}{share}  {self.facts()}".rstrip())

    def facts(self) -> str:
        """What is known now: `loss 2.3142  12,345 tok/s  MFU 41.2%  1:23 left`."""
        left = self._throughput.seconds_left(self._total)
        # The first steps wait for a source that has only begun: that says nothing yet.
        waits = self.tokens_per_second and self._waited is not None and self._waited > WAITED
        known = [
            None if self._loss is None else f"{self._shows} {_loss(self._loss)}",
            None if not self.tokens_per_second else f"{self.tokens_per_second:,.0f} tok/s",
            None if self.mfu is None else f"MFU {100 * self.mfu:.1f}%",
            f"{self._waits} {self._waited:.0%}" if waits else None,
            None if left is None or self._step >= self._total else f"{duration(left)} left",
        ]
        return "  ".join(fact for fact in known if fact)

    @contextmanager
    def status(self, message: str) -> Iterator[None]:
        """Says what the run does instead of training steps (evaluating, saving); that time is not throughput's."""
        self._throughput.pause()
        try:
            if self._bar is None:
                with status(message, self._console):
                    yield
            else:
                self._bar.update(self._task, description=message)
                self._bar.refresh()
                yield
        finally:
            self._throughput.resume()
            if self._bar is not None:
                self._bar.update(self._task, description="training")


@contextmanager
def status(message: str, console: Console | None = None) -> Iterator[None]:
    """Says what takes a while (loading, compiling): a line with the time it has taken so far, which goes when it is
    over, or in a log one line before and, if it took over two seconds, one after. Work on sources and models that tells
    how far it is (`watched`) shows that on the line."""
    console = console or Console()
    begun = time.monotonic()
    if moves(console):
        columns = bars.SpinnerColumn("dots"), bars.TextColumn("{task.description}"), bars.TimeElapsedColumn()
        with bars.Progress(*columns, console=console, transient=True, refresh_per_second=8) as line:
            task = line.add_task(message)

            def shown(what: str, done: int, of: int) -> None:
                far = f"{done / of:.0%}" if of else f"{done:,}" if done else ""
                line.update(task, description=f"{what} {far}".rstrip())

            with watched(shown):
                yield
        return
    _line(console, f"{message} ...")
    yield
    if (seconds := time.monotonic() - begun) > 2:
        _line(console, f"{message}: {duration(seconds)}")


def track(items: Iterable[Any], total: int, what: str, console: Console | None = None) -> Iterator[Any]:
    """The items, with a line that shows how many of them are through, which goes when they are; in a log a line before
    and, if it took over two seconds, one after."""
    console = console or Console()
    if not moves(console):
        with status(f"{what} ({total:,})", console):
            yield from items
        return
    columns = bars.TextColumn("{task.description}"), bars.BarColumn(None), bars.MofNCompleteColumn()
    with bars.Progress(*columns, bars.TimeRemainingColumn(), console=console, transient=True, expand=True) as line:
        yield from line.track(items, total=total, description=what, update_period=0.2)


def moves(console: Console) -> bool:
    """Whether a line can be rewritten there."""
    return console.is_terminal and not console.is_dumb_terminal


def duration(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`, `3 d 04:05:06`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes}:{rest:02}"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours}:{minutes:02}:{rest:02}"


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.3g}"


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=None),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[facts]}", markup=False),
        console=console,
        expand=True,
        refresh_per_second=4,
    )


def _line(console: Console, text: str) -> None:
    # Not wrapped to the 80 columns that a console assumes of a file.
    console.print(text, soft_wrap=True, markup=False, highlight=False)
