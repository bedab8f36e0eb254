# SPDX-License-Identifier: Apache-2.0
"""What a run measures, kept as lines of JSON for programs and as TensorBoard events for people."""

import json
import math
import os
import platform
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

import jaxpost
from jaxpost.arrays import Metrics
from jaxpost.faults import Fault

_events: Any = event_pb2  # generated modules make their classes on import, unseen by type checkers
_summaries: Any = summary_pb2
LINES, EVENTS, FACTS = "metrics.jsonl", "tensorboard", "run.json"
FLUSH_SECONDS = 10.0


class Writer:
    """Appends to RUN/metrics.jsonl one line a call, `{"step": 7, "time": 1712.5, "loss": 2.1}`, on disk when the call
    returns, and the same to RUN/tensorboard unless told otherwise, on disk within about ten seconds.

    `step` is where the run stands (0 when it starts, the checkpoint's when it resumes): lines of later steps, which an
    interrupted run wrote after its last checkpoint, are dropped, and TensorBoard is told to forget its own, so the
    record never contradicts the weights. `time` is seconds since the epoch.

    JSON has no NaN and no infinity: they are `null` in the lines (so every reader can parse them) and themselves in
    TensorBoard. A step may be written more than once with different metrics; `read` merges them.
    A disk that is full raises `Fault`.
    """

    def __init__(self, run_dir: str | Path, step: int = 0, tensorboard: bool = True):
        self._run_dir = Path(run_dir)
        self._path = self._run_dir / LINES
        self._events: EventsWriter | None = None
        self._flushed = time.monotonic()
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            _keep_until(self._path, step)
            # Unbuffered, so that what could not be written is not tried again when the file is closed.
            self._lines = self._path.open("ab", buffering=0)
            if tensorboard:
                self._events = _events_file(self._run_dir / EVENTS, step)
        except OSError as error:
            raise self._fault(error) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def write(self, step: int, metrics: Metrics) -> None:
        """One line. Values are anything that `float` takes."""
        now = time.time()
        values = {name: float(value) for name, value in metrics.items()}
        if reserved := {"step", "time"} & values.keys():
            raise ValueError(f"metrics named {sorted(reserved)} would hide the line's own")
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, "time": round(now, 3), **finite}, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[self._lines.write(line) :]
            if self._events is not None:
                summary = _summaries.Summary(
                    value=[_summaries.Summary.Value(tag=name, simple_value=v) for name, v in values.items()]
                )
                self._events.write_event(_events.Event(wall_time=now, step=step, summary=summary))
                if time.monotonic() - self._flushed > FLUSH_SECONDS:
                    self._events.flush()
                    self._flushed = time.monotonic()
        except OSError as error:
            raise self._fault(error) from error

    def close(self) -> None:
        """Everything written is on disk afterwards. Closing twice does nothing."""
        self._lines.close()
        events, self._events = self._events, None
        if events is not None:
            try:
                events.close()
            except OSError as error:
                raise self._fault(error) from error

    def _fault(self, error: OSError) -> Fault:
        return Fault(
            f"metrics: cannot write in {self._run_dir} ({error.strerror or error}); free some space or choose another "
            "run directory, then start the same command again: a run goes on from its last checkpoint"
        )


def read(run_dir: str | Path) -> list[dict[str, Any]]:
    """What a run measured, one dict a step in order of steps: `step`, `time` and the metrics by name, NaN where the
    value was not finite. Of values written twice for a step the later counts. A torn line (the process was killed
    while writing) is left out; no file at all is an empty list."""
    steps: dict[int, dict[str, Any]] = {}
    for _, record in _parsed(Path(run_dir) / LINES):
        values = {name: math.nan if value is None else value for name, value in record.items()}
        steps.setdefault(record["step"], {}).update(values)
    return [steps[step] for step in sorted(steps)]


def environment() -> dict[str, str]:
    """What a run runs on, for its readers: devices, and the versions that numbers can depend on."""
    kinds = [device.device_kind for device in jax.devices()]
    devices = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return {
        "devices": devices if jax.process_count() == 1 else f"{devices} ({jax.process_count()} processes)",
        "jaxpost": jaxpost.__version__,
        "jax": version("jax"),
        "python": platform.python_version(),
    }


def write_facts(run_dir: str | Path, facts: Mapping[str, str | int | float]) -> None:
    """RUN/run.json: what is said about a run besides its metrics; the report shows each fact as it is named here."""
    write_json(Path(run_dir) / FACTS, dict(facts))


def read_facts(run_dir: str | Path) -> dict[str, Any]:
    """What has been said about a run so far; nothing where nothing can be read."""
    try:
        return dict(json.loads((Path(run_dir) / FACTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """A file of the run directory, written whole or not at all. A disk that is full raises `Fault`."""
    try:
        _replace(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    except OSError as error:
        raise Fault(f"cannot write {path} ({error.strerror or error}); free some space or check its folder") from error


def _parsed(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines that are records, each with its own bytes."""
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def _keep_until(path: Path, step: int) -> None:
    """Rewrites the file without the lines of later steps and without torn ones, whole or not at all."""
    if path.is_file():
        kept = b"".join(line + b"\n" for line, record in _parsed(path) if record["step"] <= step)
        if kept != path.read_bytes():
            _replace(path, kept)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _events_file(directory: Path, step: int) -> EventsWriter:
    # Written directly: SummaryWriter's queue and thread would block a run for good once its disk is full.
    directory.mkdir(exist_ok=True)
    number = sum(1 for _ in directory.iterdir())  # two files of one second would else have one name
    events = EventsWriter(str(directory / "events"), filename_suffix=f".{number}")
    start = _events.SessionLog(
        status=_events.SessionLog.START
    )  # tells TensorBoard to forget what earlier files say of these steps
    events.write_event(_events.Event(wall_time=time.time(), step=step + 1, session_log=start))
    events.flush()
    return events
