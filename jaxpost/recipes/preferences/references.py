# SPDX-License-Identifier: Apache-2.0
"""What the reference says of every answer, asked once before a run and kept in its directory.

It is asked as training asks it, of the same tokens. The file names what it was made from, rows, tokenizer and model
among it, and is of use to nothing else.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxpost import delta
from jaxpost.arrays import Array, Batch, HostBatch, Tree
from jaxpost.data.batches.loader import Loader, Said, Unit, read
from jaxpost.data.batches.packing import MOST, Group
from jaxpost.data.chat.template import Template
from jaxpost.data.prepare.cache import identity_of, key_of
from jaxpost.data.prepare.cleaning import KEEP_ALL
from jaxpost.data.rows.views import Changing, View, place_of
from jaxpost.data.tokenizers import Tokenizer
from jaxpost.faults import Fault
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import base, record
from jaxpost.recipes.assembly import reserving
from jaxpost.recipes.base import Loaded
from jaxpost.recipes.feed import place
from jaxpost.recipes.preferences.answers import answers, unreserved
from jaxpost.recipes.prepared import prepared
from jaxpost.recipes.telling import console, reading, say
from jaxpost.train.progress import track

FILE = "reference.npz"
PARTS = ("training", "held-out")


@dataclass(frozen=True)
class Groups(View):
    """Rows as tokens, with what the reference says of each answer behind their values, once it has said it."""

    rows: Sequence[Any]
    unit: Unit
    tokenizer: Tokenizer
    columns: Mapping[str, str] | None
    said: np.ndarray | None = None

    def __getitem__(self, index: Any) -> Group:
        (group,) = read([self.rows[index]], self.unit, self.tokenizer, self.columns, "completion")
        if self.said is None:
            return group
        return group._replace(values=(*group.values, *self.said[index, : len(group.members)].tolist()))

    def place_of(self, index: int, epoch: int = 0) -> str:
        return place_of(self.rows, epoch, index)


@dataclass(frozen=True)
class Referred:
    """A corpus of rows as `Groups`."""

    train: Groups
    held: Groups

    @property
    def columns(self) -> None:
        return None

    def training(self, seed: int) -> Groups:
        return self.train

    def held_out(self, seed: int) -> Groups:
        return self.held


def check(config: Any) -> None:
    """That a reference can be asked beside this delta."""
    if config.reference == "start" and config.delta.virtual and config.delta.place == "between":
        raise Fault(
            "the learned prompt stands between question and answer, where the model that the run starts from has none; "
            "put it before (delta.place), or take reference 'stored'"
        )


def ask(model: Decoder, config: Any, frozen: Tree, extra: Tree, batch: Batch, beyond: float = 1.0) -> Array:
    """What the reference says of every answer of a batch, `[b, MOST]`, in the same step and without a gradient: what is
    stored, what the model says that the run starts from, or the one that follows the policy, in `extra`."""
    if "reference" in batch:
        return batch["reference"]
    weights = frozen["base"]
    if config.moving is not None and extra is not None:
        weights = delta.bind(weights, delta.combine(extra, frozen["fixed"]))
    elif config.delta.virtual:
        batch = unreserved(batch, config.delta.virtual)
    found = answers(model, jax.lax.stop_gradient(weights), batch, config.train.remat, beyond=beyond)
    return jax.lax.stop_gradient(found.log_probs)


def known(config: Any, directory: Path, model: Loaded, unit: Any, mesh: Mesh) -> Any:
    """The config with data that know what the reference says, if it is to be stored; else as it is."""
    if config.reference != "stored":
        return config
    path, plain, columns = directory / FILE, replace(unit, reference=False), config.data.columns
    rows = list(_rows(config, model.tokenizer, plain))
    heard = [Groups(some, plain, model.tokenizer, columns) for some in rows]
    key = _key(config, model.tokenizer, heard)
    said = _read(path, key) if path.exists() else None
    if said is None:
        said = [_asked(model, some, config.batches, mesh, part) for part, some in zip(PARTS, heard, strict=True)]
        _write(path, key, said)
    if config.delta.virtual:  # the policy's rows have places for the learned prompt, those that the reference heard not
        tokenizer = reserving(model.tokenizer, config.delta)
        rows = list(_rows(config, tokenizer, plain))
    else:
        tokenizer = model.tokenizer
    train, held = (Groups(some, plain, tokenizer, columns, x) for some, x in zip(rows, said, strict=True))
    return replace(config, data=Referred(train, held), batches=replace(config.batches, cleaning=KEEP_ALL))


def _rows(config: Any, tokenizer: Tokenizer, unit: Unit) -> Iterator[Sequence[Any]]:
    """The rows that are trained on, cleaned, and those that are held out; as tokens where these are kept."""
    asis = replace(config.batches, cleaning=KEEP_ALL)
    for read_rows, batches in ((config.data.training, config.batches), (config.data.held_out, asis)):
        rows = reading(lambda read_rows=read_rows: read_rows(config.train.seed), "reading the data")
        if isinstance(rows, Changing):
            raise Fault(
                "reference 'stored' asks every row once, and these are others in every epoch, as a mixture's are; use "
                "reference 'start'"
            )
        yield prepared(rows, tokenizer, batches, config.data.columns, None, console(), unit)


def _key(config: Any, tokenizer: Tokenizer, parts: Sequence[Groups]) -> dict[str, str]:
    """What the stored numbers depend on, each in a few characters, under the name that a fault calls it by."""
    return {
        "rows": key_of(*map(_content, parts)),
        "tokenizer": key_of(identity_of(tokenizer)),
        "model": key_of(json.dumps(record.encode(config.model), sort_keys=True), _files(config.model)),
        "seq_len": str(config.batches.seq_len),
    }


def _content(rows: Groups) -> str:
    numbers = track(range(len(rows)), len(rows), "looking at rows", console())
    return key_of([key_of([(m.ids.tobytes(), m.trained.tobytes()) for m in rows[i].members]) for i in numbers])


def _files(model: Any) -> list[tuple[str, int, int]]:
    """The files that a model is read from, an adapter's or another run's among them, with their sizes and times."""
    folders = [base.directory(model)] if isinstance(model, base.Pretrained) else []
    folders += [Path(model.adapter)] if getattr(model, "adapter", "") else []
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    weights = [path for path in files if path.suffix in (".safetensors", ".bin") or "checkpoints" in path.parts]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weights]


def _read(path: Path, key: Mapping[str, str]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as kept:
            was, said = json.loads(str(kept["key"])), [kept[name] for name in PARTS]
    except (OSError, ValueError, KeyError) as error:
        raise Fault(f"{path} is damaged: remove it, and the reference is asked again") from error
    if changed := [name for name, value in key.items() if was.get(name) != value]:
        raise Fault(
            f"{path}: the reference that is stored there is for other data ({' and '.join(changed)} changed since); "
            "remove it, and the reference is asked again, or choose another run directory"
        )
    return said


def _write(path: Path, key: Mapping[str, str], said: Sequence[np.ndarray]) -> None:
    if jax.process_index() > 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft.npz")
    np.savez(draft, key=json.dumps(dict(key)), **dict(zip(PARTS, said, strict=True)))
    draft.replace(path)
    say(f"what the reference says of {sum(map(len, said)):,} rows is kept in {path}")


@dataclass(frozen=True)
class _Numbered(View):
    """Groups that know their number instead of what is said of them."""

    rows: Groups

    def __getitem__(self, index: Any) -> Group:
        return self.rows[index]._replace(values=(float(index),))


@dataclass(frozen=True)
class _Numbers:
    """Groups with their numbers in the batch: `at` int32[rows, MOST], the place among all answers that segment s + 1
    has, counted from 1, `most` of them for every row."""

    unit: Unit
    most: int

    def said(self, row: Any, columns: Mapping[str, str] | None, template: Template | None) -> Said:
        return self.unit.said(row, columns, template)

    def fit(self, group: Group, room: int, bos: int | None) -> Group | None:
        return self.unit.fit(group, room, bos)

    def extras(self, rows: Sequence[Sequence[Group]]) -> dict[str, np.ndarray]:
        at = np.zeros((len(rows), MOST), np.int32)
        for i, row in enumerate(rows):
            found = [int(group.values[0]) * self.most + k + 1 for group in row for k in range(len(group.members))]
            at[i, : len(found)] = found
        return {"at": at}


@functools.partial(jax.jit, static_argnames="model")
def _sums(model: Decoder, weights: Tree, batch: Batch) -> tuple[Array, Array]:
    found = answers(model, weights, batch).log_probs, batch["at"]
    return jax.lax.with_sharding_constraint(found, P())  # every process reads those of all rows


def _asked(model: Loaded, rows: Groups, batches: Any, mesh: Mesh, part: str) -> np.ndarray:
    """What the model says of every answer, float32[rows, 2]; 0 of rows that are left out."""
    said = np.zeros(2 * len(rows), np.float32)
    packed = Loader(
        _Numbered(rows),
        model.tokenizer,
        batches.rows,
        batches.seq_len,
        batches.packing,
        seed=None,
        epochs=1,
        overlong=batches.overlong,
        unit=_Numbers(rows.unit, 2),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    count = packed.batches()
    for batch in track(_until_its_end(packed), count, f"asking the reference about {part} rows", console()):
        found, at = (np.asarray(x) for x in _sums(model.config, model.weights, place(batch, mesh)))
        said[at[at > 0] - 1] = found[at > 0]
    return said.reshape(-1, 2)


def _until_its_end(loader: Loader) -> Iterator[HostBatch]:
    with suppress(StopIteration):
        while True:
            yield loader.next()
