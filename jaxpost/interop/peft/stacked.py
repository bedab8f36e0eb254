# SPDX-License-Identifier: Apache-2.0
"""From what an adapter holds for each module to edits of whole parameters, whose layers and experts are stacked, and
back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost.delta import LowRank, Svd
from jaxpost.interop.names import Slot
from jaxpost.params import ParamSpec

Index = tuple[int, ...]


@dataclass(frozen=True)
class Factors:
    """`scale * a @ b` for one matrix: a `[in, r]`, b `[r, out]`."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def trimmed(self) -> "Factors":
        """Without ranks of zeros, which stacking under layers of higher rank adds."""
        used = np.any(self.a, axis=0) | np.any(self.b, axis=1)
        return replace(self, a=self.a[:, used], b=self.b[used])


def low_rank(spec: ParamSpec, parts: Mapping[Index, Factors], dropout: float) -> LowRank:
    """The edit of a parameter. Layers of lower rank, or of none, are filled up with zeros, which get no gradient."""
    rank = max(1, *(part.rank for part in parts.values()))
    lead, inner, outer = spec.sizes(0), spec.sizes(1), spec.sizes(2)
    a = np.zeros((*lead, int(np.prod(inner)), rank), np.float32)
    b = np.zeros((*lead, rank, int(np.prod(outer))), np.float32)
    scale = np.zeros(lead, np.float32)
    for index, part in parts.items():
        a[index][:, : part.rank] = part.a
        b[index][: part.rank] = part.b
        scale[index] = part.scale
    whole_a, whole_b = a.reshape((*lead, *inner, rank)), b.reshape((*lead, rank, *outer))
    return LowRank(jnp.asarray(whole_a), jnp.asarray(whole_b), jnp.asarray(scale), dropout)


def triplets(
    spec: ParamSpec, parts: Mapping[Index, tuple[np.ndarray, np.ndarray, np.ndarray]], scale: float, dropout: float
) -> Svd:
    """The same of singular values `[r]` between two matrices, filled up with values of zero."""
    edit = low_rank(spec, {index: Factors(p, q, scale) for index, (p, _, q) in parts.items()}, dropout)
    lam = np.zeros((*spec.sizes(0), edit.a.shape[-1]), np.float32)
    for index, (_, values, _) in parts.items():
        lam[index][: len(values)] = values
    return Svd(edit.a, jnp.asarray(lam), edit.b, edit.scale, dropout)


def values_under(edit: Svd, slot: Slot) -> Factors:
    """One matrix's part of such an edit, its values as one more row of a, and without triplets whose value is zero."""
    part = factors(LowRank(edit.p, edit.q, edit.scale), slot)
    lam = np.asarray(edit.lam, np.float32)[slot.index]
    return Factors(np.concatenate([part.a, lam[None]])[:, lam != 0], part.b[lam != 0], part.scale)


def factors(edit: LowRank, slot: Slot) -> Factors:
    """One matrix's part of an edit."""
    a = np.asarray(edit.a, np.float32)[slot.index].reshape(slot.inner, -1)
    b = np.asarray(edit.b, np.float32)[slot.index].reshape(-1, slot.outer)
    return Factors(a, b, float(np.asarray(edit.scale, np.float32)[slot.index]))


def joined(parts: list[Factors]) -> Factors:
    """Updates of one matrix as one: ranks one behind the other, scales that differ moved into b."""
    kept = [part for part in map(Factors.trimmed, parts) if part.rank and part.scale]
    if not kept:
        return replace(parts[0].trimmed(), a=parts[0].a[:, :0], b=parts[0].b[:0])
    scale = kept[0].scale
    a = np.concatenate([part.a for part in kept], axis=1)
    # Of one update alone, b stays what it is, bit by bit.
    b = np.concatenate([part.b if part.scale == scale else part.b * (part.scale / scale) for part in kept])
    return Factors(a, b, scale)


def beside(parts: list[Factors]) -> Factors:
    """Updates of matrices that share a module, one behind the other along the out axis, as one of the module: with the
    same a if all have it, else each with ranks of its own."""
    first = next((part for part in parts if part.rank), parts[0])
    if all(np.array_equal(part.a, first.a) and part.scale == first.scale for part in parts):
        return replace(first, b=np.concatenate([part.b for part in parts], axis=1))
    rank, outer = sum(part.rank for part in parts), sum(part.b.shape[1] for part in parts)
    b = np.zeros((rank, outer), np.float32)
    row = column = 0
    for part in parts:
        b[row : row + part.rank, column : column + part.b.shape[1]] = part.b * (part.scale / first.scale)
        row, column = row + part.rank, column + part.b.shape[1]
    return Factors(np.concatenate([part.a for part in parts], axis=1), b, first.scale)


def filled(spec: ParamSpec, parts: Mapping[Index, np.ndarray], otherwise: float = 0.0) -> Any:
    """Values by layer (and expert), each of the parameter's own axes, as one array of all."""
    whole = np.full(spec.shape, otherwise, np.float32)
    for index, part in parts.items():
        whole[index] = part.reshape(whole[index].shape)
    return jnp.asarray(whole)
