# SPDX-License-Identifier: Apache-2.0
"""Checkpoints through Orbax: written in the background, complete or absent, restorable onto another mesh."""

import json
import logging
import sys
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxpost.arrays import Tree
from jaxpost.faults import Fault

# Orbax narrates every save as a warning, and logs with its traceback what it then raises.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Saved:
    """A checkpoint as read: the state, the position of each process's data source, and the step."""

    step: int
    state: Tree
    sources: list[dict[str, Any]]


class Checkpoints:
    """The checkpoints of one run: `latest` (the last two, so that one is always whole) and `best`.

    What is saved is what a run cannot derive from its config: the state and the data's position. Keys are folded from
    the config's seed and the state's step.
    """

    def __init__(self, directory: Path, read_only: bool = False):
        """`read_only`: to look at a run that may be training, whose unfinished checkpoints are not ours to clear."""
        _quiet_when_closed()
        self.directory = directory.absolute()
        self._latest = _manager(self.directory / "latest", 2, read_only)
        self._best = _manager(self.directory / "best", 1, read_only)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        # On the way out of an exception too: a `Stopped` that says it saved must be right.
        with self._said(None), ExitStack() as closing:
            for manager in (self._latest, self._best):
                closing.callback(manager.close)
                closing.callback(manager.wait_until_finished)  # raises what failed, once: `close` would not get further

    def step(self) -> int | None:
        """The step of the latest complete checkpoint."""
        return self._latest.latest_step()

    def save(self, step: int, state: Tree, source: dict[str, Any], best: bool = False) -> None:
        """Starts to write in the background, once an earlier save is done. Raises `Fault` when there is no room."""
        manager = self._best if best else self._latest
        if step in manager.all_steps():
            return
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(_gathered(source)))
        with self._said(step):
            manager.save(step, args=arguments, force=True)

    def wait(self) -> None:
        """Until everything started is on disk."""
        with self._said(None):
            for manager in (self._latest, self._best):
                manager.wait_until_finished()
                manager.check_for_errors()

    def restore(self, abstract: Tree, best: bool = False) -> Saved:
        """The newest (or the best) checkpoint, laid out as the abstract state says, on whatever mesh that names."""
        manager = self._best if best else self._latest
        step = manager.latest_step()
        if step is None:
            raise Fault(f"{manager.directory} has no checkpoint; train first, or name another run")
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        try:
            read = manager.restore(step, args=arguments)
            if jax.tree.structure(read["state"]) != jax.tree.structure(abstract):
                raise ValueError("it has arrays where none belong, or none where some do")
        except Exception as error:  # unreadable arrays come as nothing more precise
            raise Fault(
                f"checkpoint {manager.directory}/{step} cannot be restored: {_first_line(error)}; it is damaged, or "
                "the run's config has changed since: start a new run directory, or delete the damaged step"
            ) from error
        return Saved(step, read["state"], read["data"]["sources"])

    def _said(self, step: int | None) -> "_DiskFaults":
        return _DiskFaults(self, step)


class _DiskFaults:
    """Turns what Orbax and the file system say of a failed write into one sentence."""

    def __init__(self, checkpoints: Checkpoints, step: int | None):
        self._checkpoints, self._step = checkpoints, step

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if error is None or isinstance(error, KeyboardInterrupt | SystemExit | Fault):
            return
        last = self._checkpoints.step()
        rest = f"the checkpoint of step {last} is intact" if last is not None else "no earlier checkpoint exists"
        at = f" at step {self._step}" if self._step is not None else ""
        raise Fault(
            f"saving to {self._checkpoints.directory}{at} failed: {_first_line(error)}; {rest}. Make room and start "
            "the same command again to go on from there"
        ) from error


def _quiet_when_closed() -> None:
    """A read or write that fails leaves others under way, and asyncio complains of each that nobody waits for it any
    more: pages of tracebacks on a terminal where one sentence says what failed."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine '.*serialize.*' was never awaited", RuntimeWarning)
    hook = sys.unraisablehook
    if getattr(hook, "quiet", False):
        return

    def heard(unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            hook(unraisable)

    heard.quiet = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = heard


def _manager(directory: Path, keep: int, read_only: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    try:
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            directory.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(directory, item_names=("state", "data"), options=options)
    except OSError as error:
        raise Fault(f"cannot write to {directory}: {_first_line(error)}; choose another run directory") from error


def _gathered(source: dict[str, Any]) -> dict[str, Any]:
    """Every process's position, so that one file holds them all."""
    if jax.process_count() == 1:
        return {"sources": [source]}
    text = np.frombuffer(json.dumps(source).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = text
    rows = multihost_utils.process_allgather(padded)
    return {"sources": [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    for trail in (" See full TensorStore", " [tensorstore_spec", " [source locations"):
        line = line.partition(trail)[0]
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"  # the cause of causes stands last
