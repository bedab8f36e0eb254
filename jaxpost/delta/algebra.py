# SPDX-License-Identifier: Apache-2.0
"""Arithmetic with whole deltas.

What is added and scaled is what a delta changes a weight by. Edits that have such a change, whatever weight they meet,
are called additive; a factor (IA3) or a magnitude (DoRA) has none, and is stacked, never added up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxpost.arrays import Array
from jaxpost.delta.bind import Delta, spread
from jaxpost.delta.contract import dense, fills
from jaxpost.delta.dense import Dense
from jaxpost.delta.insert import Insert
from jaxpost.delta.low_rank import Factors, LowRank
from jaxpost.delta.one_bit import OneBit
from jaxpost.delta.stack import Stack
from jaxpost.faults import Fault

LINEAR: Mapping[type, str] = {Dense: "dw", LowRank: "scale", OneBit: "scale"}
"""The additive edits, each with a field that its change is proportional to."""


def add(*deltas: Delta) -> dict[str, Any]:
    """The delta that changes every weight by the sum of what these change it by; of different targets, their union.

    Low-rank updates become one whose rank is the sum of theirs, dense ones one dense one; where both meet, or others,
    the sum is a `Stack`. Biases that fill a slot add up as well. Raises `Fault` where edits meet that are not additive.
    """
    terms: dict[str, list[Any]] = {}
    for delta in deltas:
        for path, edit in delta.items():
            terms.setdefault(path, []).append(edit)
    return {path: edits[0] if len(edits) == 1 else _sum(path, edits) for path, edits in terms.items()}


def scale(delta: Delta, by: float | Array) -> dict[str, Any]:
    """The delta that changes every weight by so many times as much: once for 1, the other way for -1. Raises `Fault`
    for an edit that is not additive."""
    return {path: _scaled(path, edit, by) for path, edit in delta.items()}


def subtract(one: Delta, other: Delta) -> dict[str, Any]:
    """The delta that changes every weight by what the first changes it by and takes off what the second does."""
    return add(one, scale(other, -1.0))


def switch(old: Delta, new: Delta) -> dict[str, Any]:
    """What turns a model with `old` folded in into one with `new` instead: - B A + B' A'.

    A bias that only `old` brings stays, as zeros. Raises `Fault` for edits that are not additive.
    """
    there = {path: Dense(edit.value) if isinstance(edit, Insert) else edit for path, edit in old.items()}
    wanted = {
        path: Dense(edit.value) if isinstance(edit, Insert) and path in there else edit for path, edit in new.items()
    }
    for path in old:
        _check_bias(path, old[path])
    return subtract(wanted, there)


def stack(*deltas: Delta) -> dict[str, Any]:
    """One delta in place of several bound one over the other, the first next to the base. No numbers are added up, so
    it takes edits of every kind. Raises `Fault` where two would fill one slot."""
    done: dict[str, Any] = {}
    for delta in deltas:
        for path, edit in spread(delta).items():
            if path in done and fills(edit):
                raise Fault(f"stack: two deltas fill {path!r}, and a slot holds one; take only one of them")
            done[path] = Stack((*parts(done[path]), *parts(edit))) if path in done else edit
    return done


def parts(edit: Any) -> tuple[Any, ...]:
    """The edits that an edit is a stack of."""
    return tuple(part for one in edit.edits for part in parts(one)) if isinstance(edit, Stack) else (edit,)


def terms(edit: Any) -> tuple[Any, ...]:
    """The same where only the change matters: what is a low-rank update in other words (AdaLoRA, VeRA) is one here."""
    return tuple(part.low_rank() if isinstance(part, Factors) else part for part in parts(edit))


def _sum(path: str, edits: Sequence[Any]) -> Any:
    if all(isinstance(edit, Insert) for edit in edits):
        for edit in edits:
            _check_bias(path, edit)
        return Insert(sum(dense(edit.value) for edit in edits))
    every = [term for edit in edits for term in terms(edit)]
    for term in every:
        _field(path, term)
    whole = [term for term in every if isinstance(term, Dense)]
    factors = [term for term in every if isinstance(term, LowRank)]
    # Dense ones next to the base, with which they are summed before they meet the activation.
    done = [Dense(sum(dense(term.dw) for term in whole))] if whole else []
    done += [joined(factors)] if len(factors) > 1 else factors
    done += [term for term in every if not isinstance(term, Dense | LowRank)]
    return done[0] if len(done) == 1 else Stack(tuple(done))


def joined(edits: Sequence[LowRank]) -> LowRank:
    """The sum of low-rank updates as one of the sum of their ranks, exactly: factors side by side, each b with its
    scale in it. Dropout is kept where all have the same."""
    lead = edits[0].scale.ndim
    a = jnp.concatenate([edit.a.astype(jnp.float32) for edit in edits], axis=-1)
    up = [edit.b.astype(jnp.float32) * _along(edit.scale, edit.b.ndim) for edit in edits]
    rates = {edit.dropout for edit in edits}
    dropout = rates.pop() if len(rates) == 1 else 0.0
    return LowRank(a, jnp.concatenate(up, axis=lead), jnp.ones_like(edits[0].scale, jnp.float32), dropout)


def _along(scale: Array, ndim: int) -> Array:
    return scale.astype(jnp.float32).reshape(*scale.shape, *(1,) * (ndim - scale.ndim))


def _scaled(path: str, edit: Any, by: float | Array) -> Any:
    if isinstance(edit, Stack):
        return edit.replace(edits=tuple(_scaled(path, part, by) for part in edit.edits))  # pyright: ignore
    if isinstance(edit, Insert):
        _check_bias(path, edit)
        return edit.replace(value=dense(edit.value) * by)  # pyright: ignore[reportAttributeAccessIssue]
    (edit,) = terms(edit)
    name = _field(path, edit)
    return edit.replace(**{name: dense(getattr(edit, name)) * by})


def check_additive(path: str, edit: Any) -> None:
    """Raises `Fault` unless the edit changes its weight by something that does not depend on the weight."""
    for term in terms(edit):
        _check_bias(path, term) if isinstance(term, Insert) else _field(path, term)


def _field(path: str, edit: Any) -> str:
    """The name of the field that an edit's change is proportional to."""
    if fills(edit) and not isinstance(edit, Insert):
        raise Fault(f"{path!r} is a {type(edit).__name__}, which stands beside the weights: half of one is none, and "
                    "two are no sum")  # fmt: skip
    if type(edit) not in LINEAR:
        raise Fault(
            f"{path!r} is edited by a {type(edit).__name__}, which has no change of its own to scale or add: what it "
            "does depends on the weight; stack such deltas, or fold them and take the difference to the base"
        )
    return LINEAR[type(edit)]


def _check_bias(path: str, edit: Any) -> None:
    if isinstance(edit, Insert) and not path.endswith("_bias"):
        raise Fault(f"{path!r} is an Insert: only biases can be scaled or added, half of a prompt or a head is none")
