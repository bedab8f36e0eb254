# SPDX-License-Identifier: Apache-2.0
"""Where each parameter of a decoder stands in the checkpoints of a family, and how it lies there.

There, layers and experts are apart, every tensor has at most two axes (three where it holds all experts), and a matrix
is `[out, in]`, or `[in, out]` if the family says upright. Shapes follow from the specs; families say only names.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jaxpost import trees
from jaxpost.interop.families import Family
from jaxpost.models.architecture import Decoder, blocks, is_stacked, specs
from jaxpost.params import ParamSpec

_OUTSIDE = ("embed", "positions", "norm", "norm_bias", "head")  # of all blocks, in the order of their tensors


@dataclass(frozen=True)
class Part:
    """One matrix (or vector) of a parameter, `index` on its lead axes: `[inner, outer]`, `inner` 0 for a vector. In the
    tensor `name` it begins at `start` on the out axis, behind the parts of the others that share the tensor; `expert`
    is its index there if the tensor holds all experts."""

    path: str
    index: tuple[int, ...]
    name: str
    inner: int
    outer: int
    start: int
    upright: bool
    expert: int | None = None


def parts(family: Family, config: Decoder, there: Collection[str] = ()) -> list[Part]:
    """All matrices of a decoder in the order in which they are stored, layer by layer. `there` are the names that a
    checkpoint has, if it is read: where one of the family's other names is among them it is that one."""
    flat = {path: spec for path, spec in trees.flatten(specs(config)).items() if not spec.optional}
    ends: dict[tuple[str, int | None], int] = {}
    made = [part for path in _OUTSIDE[:2] for part in _of(family, flat, path, path, {}, 0, there, ends)]
    where = {n: (block, at) for block, numbers in blocks(config).items() for at, n in enumerate(numbers)}
    inside = dict.fromkeys(key.replace("experts/", "mlp/") for key in family.tensors if key not in _OUTSIDE)
    for number in range(config.layers):
        block, at = where[number]
        lead = {"l": at} if is_stacked(block) else {}
        for inner in inside:
            made += _of(family, flat, f"{block}/{inner}", inner, lead, number, there, ends)
    return made + [p for path in _OUTSIDE[2:] for p in _of(family, flat, path, path, {}, 0, there, ends)]


def _of(
    family: Family,
    flat: Mapping[str, ParamSpec],
    path: str,
    key: str,
    lead: Mapping[str, int],
    layer: int,
    there: Collection[str],
    ends: dict[tuple[str, int | None], int],
) -> Iterable[Part]:
    """The matrices of one parameter that are of one layer; none where the decoder has no such parameter."""
    if path not in flat:
        return
    spec = flat[path]
    inner, outer = math.prod(spec.sizes(1)) if spec.sizes(1) else 0, math.prod(spec.sizes(2))
    count = spec.sizes(0)[spec.groups[0].index("e")] if "e" in spec.groups[0] else 1
    of_experts = key.replace("mlp/", "experts/")
    key = of_experts if key.startswith("mlp/") and _of_mixture(path, flat) else key
    name = family.tensors[key]
    if (other := family.fused.get(key)) and other.format(layer=layer) in there:
        name = other
    for expert in range(count):
        index = tuple(({**lead, "e": expert})[letter] for letter in spec.groups[0])
        within = expert if "e" in spec.groups[0] and "{expert}" not in name else None
        full = name.format(layer=layer, expert=expert)
        start = ends.get((full, within), 0)
        ends[full, within] = start + outer
        yield Part(path, index, full, inner, outer, start, key in family.upright, within)


def _of_mixture(path: str, flat: Mapping[str, ParamSpec]) -> bool:
    """Whether an MLP's parameter is one of a mixture, its router included."""
    return path.rsplit("/", 1)[0] + "/router" in flat


def shapes(made: Iterable[Part]) -> dict[str, tuple[int, ...]]:
    """The tensors that parts make up, in their order."""
    found: dict[str, tuple[int, ...]] = {}
    for name, group in grouped(made).items():
        last = max(group, key=lambda part: (part.expert or 0, part.start))
        out = last.start + last.outer
        matrix = ((last.inner, out) if last.upright else (out, last.inner)) if last.inner else (out,)
        found[name] = matrix if last.expert is None else (last.expert + 1, *matrix)
    return found


def grouped(made: Iterable[Part]) -> dict[str, list[Part]]:
    groups: dict[str, list[Part]] = {}
    for part in made:
        groups.setdefault(part.name, []).append(part)
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


def tensor(group: Iterable[tuple[Part, np.ndarray]], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A stored tensor from its parts' matrices (`[inner, outer]`, or `[outer]`)."""
    made = np.empty(shape, dtype)
    for part, matrix in group:
        whole = made if part.expert is None else made[part.expert]
        out = slice(part.start, part.start + part.outer)
        if part.inner and part.upright:
            copy(whole[:, out], matrix)
        elif part.inner:
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
