# SPDX-License-Identifier: Apache-2.0
"""Low-rank edits of parameters as PEFT's LoRA, DoRA and AdaLoRA."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxpost.interop.names import Slot
from jaxpost.interop.peft import stacked
from jaxpost.interop.peft.modules import Module, no_place, shortest
from jaxpost.interop.peft.stacked import Factors
from jaxpost.models.architecture import Decoder


def written_factors(
    parts: Any, known: Mapping[str, Module], config: Decoder
) -> tuple[dict[str, Any], dict[str, np.ndarray], set[str]]:
    """What the config says, the tensors, and the names of the modules that have some."""
    made = {name: own for name, module in known.items() if (own := _module(parts, module)).rank}
    if parts.magnitudes:
        made = _with_lengths(parts, known, made)
    if not made:
        path = next(iter([*parts.changes, *parts.filled]), "the delta")
        raise no_place(
            f"{path} changes without a low-rank edit, factors or a prompt, and PEFT's adapters are made of those"
        )
    offsets = _offsets(parts, known, made)
    found: dict[str, np.ndarray] = {}
    for name, own in made.items():
        module = known[name]
        one, other = ("lora_embedding_A", "lora_embedding_B") if module.is_table else ("lora_A.weight", "lora_B.weight")
        found[module.key(one)], found[module.key(other)] = own.a.T, own.b.T
        if offsets and not module.is_table:
            found[module.key("lora_B.bias")] = offsets.get(name, np.zeros(module.outer, np.float32)) / own.scale
        if parts.magnitudes:
            found[module.key("lora_magnitude_vector")] = _lengths(parts, module)
    tied = config.tied and any(module.slots[0].path == "embed" and name in made for name, module in known.items())
    if tied:
        own = next(own for name, own in made.items() if known[name].slots[0].path == "embed")
        head = Module("lm_head", (), ())
        found[head.key("lora_A.weight")], found[head.key("lora_B.weight")] = own.b, own.a
    said = {
        "peft_type": "LORA",
        "target_modules": shortest(made, [*known, *(["lm_head"] if tied else [])]),
        **_ranks(made),
        "lora_dropout": max((edit.dropout for edits in parts.low.values() for edit in edits), default=0.0),
        "fan_in_fan_out": any(known[name].slots[0].input_major and not known[name].is_table for name in made),
        "lora_bias": bool(offsets),
        "use_dora": bool(parts.magnitudes),
        "use_rslora": False,
        "init_lora_weights": True,
        **({"ensure_weight_tying": True} if tied else {}),
    }
    return said, found, set(made)


def written_triplets(parts: Any, known: Mapping[str, Module]) -> tuple[dict[str, Any], dict[str, np.ndarray], set[str]]:
    """The same of singular values, which have one scale and one first rank for all modules; what is left of it in each
    stands in a pattern."""
    nothing = Factors(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), 1.0)
    made: dict[str, Factors] = {}
    for name, module in known.items():
        if not any(slot.path in parts.triplets for slot in module.slots):
            continue
        if not all(slot.path in parts.triplets for slot in module.slots):
            raise no_place(f"{name} is one module there, and only a part of it has singular values")
        made[name] = stacked.beside([stacked.values_under(parts.triplets[slot.path], slot) for slot in module.slots])
    rank, scale = max(1, *(own.rank for own in made.values())), next(iter(made.values()), nothing).scale
    found: dict[str, np.ndarray] = {}
    for name, own in made.items():
        found[known[name].key("lora_A")] = own.a[:-1].T
        found[known[name].key("lora_B")] = own.b.T
        found[known[name].key("lora_E")] = own.a[-1:].T * np.float32(own.scale / scale)
    patterns = {f"{name}.lora_E": [at < own.rank for at in range(rank)] for name, own in made.items()}
    said = {
        "peft_type": "ADALORA",
        "target_modules": shortest(made, known),
        "init_r": rank,
        "target_r": rank,
        "lora_alpha": _rounded(scale, lambda alpha: alpha / (rank + 1e-5), scale * (rank + 1e-5)),
        "rank_pattern": patterns if any(own.rank < rank for own in made.values()) else None,
        "lora_dropout": max((edit.dropout for edit in parts.triplets.values()), default=0.0),
        "fan_in_fan_out": any(known[name].slots[0].input_major for name in made),
        "total_step": 1,  # of a schedule that is over; the format wants one
        "init_lora_weights": True,
    }
    return said, found, set(made)


def _with_lengths(parts: Any, known: Mapping[str, Module], made: Mapping[str, Factors]) -> dict[str, Factors]:
    """The modules that have magnitudes, which are those with factors: there all have both or none. One of which only
    the length is another gets a rank of zeros."""
    whole = {}
    for name, module in known.items():
        lengths = [slot.path in parts.magnitudes for slot in module.slots]
        if all(lengths) != (any(lengths) or name in made):
            raise no_place(f"{name} has factors without magnitudes beside others that have them")
        if all(lengths):
            scale = next(iter(made.values())).scale if made else 1.0
            nothing = Factors(np.zeros((module.inner, 1), np.float32), np.zeros((1, module.outer), np.float32), scale)
            whole[name] = made.get(name, nothing)
    return whole


def _lengths(parts: Any, module: Module) -> np.ndarray:
    values = [np.asarray(parts.magnitudes[slot.path].m, np.float32)[slot.index].reshape(-1) for slot in module.slots]
    return np.concatenate(values)


def _module(parts: Any, module: Module) -> Factors:
    return stacked.beside([_slot(parts, slot) for slot in module.slots])


def _slot(parts: Any, slot: Slot) -> Factors:
    edits = parts.low.get(slot.path)
    if not edits:
        return Factors(np.zeros((slot.inner, 0), np.float32), np.zeros((0, slot.outer), np.float32), 1.0)
    return stacked.joined([stacked.factors(edit, slot) for edit in edits])


def _ranks(made: Mapping[str, Factors]) -> dict[str, Any]:
    """The commonest rank and alpha, and patterns for the others."""
    ranks = {name: own.rank for name, own in made.items()}
    alphas = {name: _alpha(own) for name, own in made.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
    }


def _alpha(own: Factors) -> float | int:
    return _rounded(own.scale, lambda alpha: alpha / own.rank, own.scale * own.rank)


def _rounded(scale: float, scaled: Callable[[float], float], exact: float) -> float | int:
    """The shortest number that makes this scale again: without the noise of having been divided in single precision."""
    rounded = (float(f"{exact:.{digits}g}") for digits in range(1, 18))
    alpha = next((value for value in rounded if np.float32(scaled(value)) == np.float32(scale)), exact)
    return int(alpha) if alpha.is_integer() else alpha


def _patterns(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    patterns = {}
    for value in sorted(set(values.values()) - {common}):
        own = {name for name, other in values.items() if other == value}
        patterns |= dict.fromkeys(shortest(own, values), value)
    return dict(sorted(patterns.items()))


def _offsets(parts: Any, known: Mapping[str, Module], made: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    """Biases where the base has none, which PEFT can add beside a low-rank edit of the same module."""
    found: dict[str, np.ndarray] = {}
    taken = set()
    for name in made:
        module = known[name]
        if not any(f"{slot.path}_bias" in parts.filled for slot in module.slots):
            continue
        values = [
            np.asarray(parts.filled[path], np.float32)[slot.index].reshape(-1)
            if (path := f"{slot.path}_bias") in parts.filled
            else np.zeros(slot.outer, np.float32)
            for slot in module.slots
        ]
        taken |= {f"{slot.path}_bias" for slot in module.slots}
        found[name] = np.concatenate(values)
    if lost := [path for path in parts.filled if path not in taken]:
        raise no_place(f"{lost[0]} is a bias that the base lacks, and PEFT can add one only beside a low-rank edit")
    return found
