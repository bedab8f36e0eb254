# SPDX-License-Identifier: Apache-2.0
"""Matrices that bitsandbytes stored in four bits (NF4), as the codes and numbers that they are.

There, a matrix `[out, in]` is cut into blocks row by row, two codes a byte. Where the blocks divide the rows, ours are
the same blocks and the same bytes, turned around: nothing is computed anew.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from jaxpost.faults import Fault
from jaxpost.interop.names import Slot
from jaxpost.interop.weights import Tensor
from jaxpost.params import ParamSpec
from jaxpost.quant import Format, Nf4, QArray
from jaxpost.quant.nf4 import DYNAMIC, LEVELS, NESTED

_STATE = ".quant_state.bitsandbytes__"
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_ALIKE = 1e-6


@dataclass(frozen=True)
class Packed:
    """One matrix `[out, in]` of a file. `maps` is what the codes of its block maxima mean; `None`: those are plain."""

    weight: Tensor
    absmax: Tensor
    nested: Tensor | None
    maps: np.ndarray | None
    offset: float
    block: int

    @property
    def blocks(self) -> int:
        """How many there are along a row."""
        return self.weight.shape[1] // self.block

    def nests(self, slot: Slot) -> bool:
        """Whether the slot's own block maxima are quantised as ours would be."""
        same = self.maps is not None and np.allclose(self.maps, DYNAMIC, rtol=0, atol=_ALIKE)
        return same and slot.start * self.blocks % NESTED == 0

    def read(self, slot: Slot, spec: ParamSpec, form: Format) -> QArray:
        """What the slot has of the matrix, in the axes of the spec (behind its lead ones)."""
        assert isinstance(form, Nf4)
        out, rows = self.weight.shape[0], slice(slot.start, slot.start + slot.outer)
        inner, outer = spec.sizes(1), spec.sizes(2)
        codes = self.weight.raw(np.uint8).reshape(out, -1)[rows]
        codes = np.ascontiguousarray(codes.T).reshape(*inner[:-1], inner[-1] // 2, *outer)
        scales = {"absmax": self._absmax(form.double).reshape(out, self.blocks)[rows]}
        scales["absmax"] = np.ascontiguousarray(scales["absmax"].T).reshape(self.blocks, *outer)
        if form.double:
            assert self.nested is not None
            numbers = slice(slot.start * self.blocks // NESTED, -(-rows.stop * self.blocks // NESTED))
            scales |= {"nested": self.nested.raw(np.float32)[numbers], "offset": np.float32(self.offset)}
        return QArray(codes, scales, form, len(inner), len(outer))

    def _absmax(self, coded: bool) -> np.ndarray:
        if self.nested is None or self.maps is None:
            return self.absmax.raw(np.float32)
        codes = self.absmax.raw(np.uint8)
        if coded:
            return codes
        largest = np.repeat(self.nested.raw(np.float32), NESTED)[: codes.size]
        return self.maps[codes] * largest + np.float32(self.offset)


def found(directory: Path, tensors: dict[str, Tensor]) -> dict[str, Packed]:
    """The packed matrices by name. `tensors` loses what belongs to them, and has them in the shape they stand for."""
    states = {name: name.rsplit(_STATE, 1)[0] for name in tensors if _STATE in name}
    made = {}
    for state, name in states.items():
        kind = state.rsplit(_STATE, 1)[1]
        if kind != "nf4":
            raise Fault(f"{directory}: tensor {name} is stored as {kind}; of bitsandbytes' formats only nf4 is read")
        parts = {part: tensors.pop(f"{name}.{part}", None) for part in _PARTS}
        made[name] = _packed(directory, name, tensors.get(name), parts, tensors.pop(state))
        tensors[name] = made[name].weight
    return made


def _packed(
    directory: Path, name: str, weight: Tensor | None, parts: Mapping[str, Tensor | None], state: Tensor
) -> Packed:
    absmax, levels = parts["absmax"], parts["quant_map"]
    try:
        said = json.loads(bytes(state.raw(np.uint8)))
        block, shape, nested = int(said["blocksize"]), tuple(map(int, said["shape"])), "nested_offset" in said
        offset, width = float(said.get("nested_offset", 0)), int(said.get("nested_blocksize", NESTED))
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(
            f"{state.file}: tensor {state.name} is no description of a matrix in four bits ({error!r})"
        ) from None
    lost = [part for part in _PARTS[: 4 if nested else 2] if parts[part] is None]
    if weight is None or absmax is None or levels is None or lost:
        what = ", ".join(f"{name}.{part}" for part in lost) if weight else name
        raise Fault(f"{directory}: {state.name} is there and {what} is not; fetch or save the model again")
    if not np.allclose(levels.raw(np.float32), LEVELS, rtol=0, atol=_ALIKE) or width != NESTED:
        raise Fault(f"{directory}: tensor {name} is in four bits of another kind than NF4 with blocks of {NESTED}")
    if len(shape) != 2 or shape[1] % block or block % 2:
        raise Fault(
            f"{directory}: tensor {name} {list(shape)} is in four bits with blocks of {block} that run across rows; "
            "take the model that it was made from"
        )
    map_ = parts["nested_quant_map"] if nested else None
    maps = map_.raw(np.float32) if map_ else None
    return Packed(replace(weight, shape=shape), absmax, parts["nested_absmax"], maps, offset, block)


def formats(
    directory: Path, packed: Mapping[str, Packed], slots: Iterable[Slot], specs: Mapping[str, ParamSpec]
) -> dict[str, Nf4]:
    """The format of every parameter whose matrices are packed: block maxima stay quantised where all of them can."""
    whole: dict[str, list[Slot]] = {}
    for slot in slots:
        whole.setdefault(slot.path, []).append(slot)
    made = {}
    for path, group in whole.items():
        parts = [packed[slot.name] for slot in group if slot.name in packed]
        if not parts:
            continue
        if len(parts) < len(group):
            plain = next(slot.name for slot in group if slot.name not in packed)
            raise Fault(
                f"{directory}: {parts[0].weight.name} is in four bits and {plain} is not; layers that are alike must "
                "be stored alike, take the model that it was made from"
            )
        sizes = {part.block for part in parts}
        if len(sizes) > 1 or group[0].input_major or specs[path].sizes(1)[-1] % 2:
            raise Fault(
                f"{directory}: {parts[0].weight.name} is in four bits in a layout that is not read (blocks of "
                f"{sorted(sizes)}, inputs {list(specs[path].sizes(1))}); take the model that it was made from"
            )
        double = all(part.nests(slot) for part, slot in zip(parts, group, strict=True))
        made[path] = Nf4(double, sizes.pop()).of(specs[path])
    return made
