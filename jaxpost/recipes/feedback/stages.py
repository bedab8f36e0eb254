# SPDX-License-Identifier: Apache-2.0
"""A run of several stages, each in a directory of its own: an ordinary run, or rows that a model has written.

A stage that is done says so in its `stage.json` and is not done again. One that was interrupted goes on as it can: a
run from its checkpoint, rows from the last that were kept. So a killed pipeline is started again by the same command.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxpost.evals import report
from jaxpost.faults import Fault
from jaxpost.recipes import record, run
from jaxpost.recipes.review import GENERATIONS
from jaxpost.recipes.telling import console, say
from jaxpost.train import metrics
from jaxpost.train.metrics import write_json
from jaxpost.train.progress import duration, track

DONE = "stage.json"
Facts = Mapping[str, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """What is done in a directory of the stage's name, and what there is to tell of it: facts by name, of which those
    under `measures` (a mapping) are drawn as curves over the stages."""

    name: str
    act: Callable[[Path], Facts]


def follow(config: Any, directory: Path, stages: Sequence[Stage], samples: Callable[[], Sequence[Row]]) -> None:
    """The stages one after the other, then the report of all of them. `samples` are prompts with what was said to them
    `before` and `after`."""
    if jax.process_count() > 1:
        raise Fault("a run of several stages runs in one process so far; start it on one host")
    run.settle(directory, config, record.is_run(directory))
    told: dict[str, Facts] = {}
    for number, stage in enumerate(stages, start=1):
        folder = directory / stage.name
        done = _done(folder)
        say(f"\nstage {number} of {len(stages)}: {stage.name}{' (done before)' if done else ''}")
        told[stage.name] = done or _do(stage, folder)
        say("\n".join(f"  {name}: {_shown(name, value)}" for name, value in _flat(told[stage.name])))
    write_json(directory / GENERATIONS, list(samples()))
    _tell(directory, told)
    page = report.write_report(directory)
    say(f"\nrun     {directory}\nmodel   {directory / stages[-1].name}\nreport  {page}")


def _do(stage: Stage, folder: Path) -> Facts:
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**stage.act(folder), "seconds": round(time.monotonic() - begun, 1)}
    write_json(folder / DONE, facts)
    return facts


def _done(folder: Path) -> Facts | None:
    try:
        return json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _tell(directory: Path, told: Mapping[str, Facts]) -> None:
    """What the report shows: every stage's facts, and their measures as curves over the stages."""
    facts = {f"{stage}: {name}": value for stage, of in told.items() for name, value in _flat(of)}
    metrics.write_facts(directory, {**metrics.environment(), **facts})
    (directory / metrics.LINES).unlink(missing_ok=True)  # made of what the stages keep, and made anew
    with metrics.Writer(directory, tensorboard=False) as writer:
        for number, of in enumerate(told.values(), start=1):
            if of.get("measures"):
                writer.write(number, {name.replace(" ", "_"): value for name, value in of["measures"].items()})


def _flat(facts: Facts) -> list[tuple[str, Any]]:
    """Facts without what lies in them as mappings: its entries stand for it."""
    found: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if not isinstance(value, Mapping):
            found.append((name, value))
            continue
        found += [(inner if name == "measures" else f"{name} {inner}", each) for inner, each in value.items()]
    return found


def _shown(name: str, value: Any) -> str:
    if name == "seconds":
        return duration(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def rows_kept(
    path: Path, count: int, size: int, make: Callable[[range], Sequence[Row]], what: str
) -> list[dict[str, Any]]:
    """`count` rows of a file of JSON lines, made `size` at a time by `make(numbers)`, one row a number, and on disk as
    soon as they are made. What an earlier start kept is read back; the part that it was killed in is made again, so
    what is made from a number's own dice is the same as without the interruption."""
    kept = _whole_lines(path)
    kept = kept[: len(kept) - len(kept) % size] if len(kept) < count else kept[:count]
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(sum(map(len, kept)))
        file.seek(0, os.SEEK_END)
        starts = range(len(kept), count, size)
        for start in track(starts, len(starts), what, console()) if starts else ():
            made = make(range(start, min(start + size, count)))
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in made]
            file.write(b"".join(lines))
            file.flush()
            os.fsync(file.fileno())
            kept += lines
    return [json.loads(line) for line in kept]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """A file of JSON lines, whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(
        "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), encoding="utf-8"
    )
    draft.replace(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
