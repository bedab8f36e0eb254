# SPDX-License-Identifier: Apache-2.0
"""Where each parameter of a decoder stands in the checkpoints of a family, and how it lies there.

There, layers and experts are apart, every tensor has at most two axes (three where it holds all experts), and a matrix
is `[out, in]`, or `[in, out]` if the family's `input_major` has it. Shapes follow from the specs, names alone from
the families.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxpost import trees
from jaxpost.interop.families import Family
from jaxpost.models.architecture import Decoder, blocks, is_stacked, specs
from jaxpost.params import ParamSpec

_OUTSIDE = ("embed", "positions", "norm", "norm_bias", "head")  # of all blocks, in the order of their tensors


@dataclass(frozen=True)
class Slot:
    """Where one matrix (or vector) of a parameter is stored: that of `index` on its lead axes, `[inner, outer]`,
    `inner` 0 for a vector. In the tensor `name` it begins at `start` on the out axis, behind the others that share the
    tensor; `expert` is its index there if the tensor holds all experts."""

    path: str
    index: tuple[int, ...]
    name: str
    inner: int
    outer: int
    input_major: bool
    expert: int | None = None
    start: int = 0


def parts(family: Family, config: Decoder, there: Collection[str] = ()) -> list[Slot]:
    """The slots of all matrices of a decoder in the order in which they are stored, layer by layer. `there` are the
    names that a checkpoint has, if it is read: where one of the family's other names is among them it is that one."""
    flat = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    where = {n: (block, at) for block, numbers in blocks(config).items() for at, n in enumerate(numbers)}

    def slots(key: str, path: str, layer: int, lead: Mapping[str, int]) -> Iterable[Slot]:
        return _of(family, key, path, flat[path], layer, lead, there) if path in flat else ()

    made = [slot for key in _OUTSIDE[:2] for slot in slots(key, key, 0, {})]
    for layer in range(config.layers):
        block, at = where[layer]
        lead = {"l": at} if is_stacked(block) else {}
        for key, path in _inside(family, block, flat):
            made += slots(key, path, layer, lead)
    return _in_line(made + [slot for key in _OUTSIDE[2:] for slot in slots(key, key, 0, {})])


def _inside(family: Family, block: str, flat: Collection[str]) -> list[tuple[str, str]]:
    """The table's keys that are of such a block, and the parameters' paths. An MLP is either dense, with keys
    `mlp/...`, or a mixture, with keys `experts/...`; its parameters are called `mlp/...` in both."""
    own, other = ("experts/", "mlp/") if f"{block}/mlp/router" in flat else ("mlp/", "experts/")
    keys = [key for key in family.tensors if key not in _OUTSIDE and not key.startswith(other)]
    return [(key, f"{block}/" + ("mlp/" + key.removeprefix(own) if key.startswith(own) else key)) for key in keys]


def _of(
    family: Family,
    key: str,
    path: str,
    spec: ParamSpec,
    layer: int,
    lead: Mapping[str, int],
    there: Collection[str],
) -> Iterable[Slot]:
    """One layer's matrices of a parameter, all with `start` 0."""
    inner, outer = math.prod(spec.sizes(1)) if spec.sizes(1) else 0, math.prod(spec.sizes(2))
    of_experts = "e" in spec.groups[0]
    name = family.tensors[key]
    if (other := family.fused.get(key)) and other.format(layer=layer) in there:
        name = other
    for expert in range(spec.sizes(0)[spec.groups[0].index("e")] if of_experts else 1):
        index = tuple(({**lead, "e": expert})[letter] for letter in spec.groups[0])
        within = expert if of_experts and "{expert}" not in name else None
        full = name.format(layer=layer, expert=expert)
        yield Slot(path, index, full, inner, outer, key in family.input_major, within)


def _in_line(slots: Iterable[Slot]) -> list[Slot]:
    """The same, those that share a tensor (or an expert's part of one) one behind the other in their order."""
    ends: Counter[tuple[str, int | None]] = Counter()
    placed = []
    for slot in slots:
        share = slot.name, slot.expert
        placed.append(replace(slot, start=ends[share]))
        ends[share] += slot.outer
    return placed


def shapes(made: Iterable[Slot]) -> dict[str, tuple[int, ...]]:
    """The tensors that slots make up, in their order."""
    found: dict[str, tuple[int, ...]] = {}
    for name, group in grouped(made).items():
        last = max(group, key=lambda slot: (slot.expert or 0, slot.start))
        out = last.start + last.outer
        matrix = ((last.inner, out) if last.input_major else (out, last.inner)) if last.inner else (out,)
        found[name] = matrix if last.expert is None else (last.expert + 1, *matrix)
    return found


def grouped(made: Iterable[Slot]) -> dict[str, list[Slot]]:
    """By tensor."""
    groups: dict[str, list[Slot]] = {}
    for slot in made:
        groups.setdefault(slot.name, []).append(slot)
    return groups


def copy(target: np.ndarray, source: np.ndarray, block: int = 64) -> None:
    """`target[...] = source`, rounded to the target's type. In strips of rows that fit the cache where one of the two
    is turned around (six times faster), and of whole words where types are alike or only wider (numpy then lets
    other threads run, which it does not while it calls a type that it does not know)."""
    if source.dtype == target.dtype:
        words = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[target.dtype.itemsize]
        source, target = source.view(words), target.view(words)
    widen = source.dtype.name == "bfloat16" and target.dtype == np.float32
    if widen:  # its bits are a float32's upper half
        source, target = source.view(np.uint16), target.view(np.uint32)
    turned = target.ndim == 2 and target.strides[0] < target.strides[1]
    step = 2 * block if widen else block if turned else max(len(target), 1)
    for start in range(0, len(target), step):
        strip = source[start : start + step]
        if widen:
            strip = strip.astype(np.uint32)
            strip <<= 16
        target[start : start + step] = strip


def tensor(group: Iterable[tuple[Slot, np.ndarray]], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A stored tensor from the matrices of its slots (`[inner, outer]`, or `[outer]`)."""
    made = np.empty(shape, dtype)
    for slot, matrix in group:
        whole = made if slot.expert is None else made[slot.expert]
        out = slice(slot.start, slot.start + slot.outer)
        if slot.inner and slot.input_major:
            copy(whole[:, out], matrix)
        elif slot.inner:
            # Strips of the matrix's rows: what is read then lies together.
            copy(whole[out].T, matrix)
        else:
            copy(whole[out], matrix)
    return made


def selected(sizes: tuple[int, ...], index: tuple[slice, ...]) -> slice | np.ndarray:
    """Which rows of a flattened group of axes a slice of each of them takes."""
    if all(range(size)[cut] == range(size) for size, cut in zip(sizes[1:], index[1:], strict=True)):
        inner = math.prod(sizes[1:])
        begin, end, _ = index[0].indices(sizes[0])
        return slice(begin * inner, end * inner)
    taken = itertools.product(*(range(*cut.indices(size)) for size, cut in zip(sizes, index, strict=True)))
    return np.array([np.ravel_multi_index(at, sizes) for at in taken])
