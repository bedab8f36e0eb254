# SPDX-License-Identifier: Apache-2.0
"""LoRA, DoRA and AdaLoRA as PEFT writes them, read as edits of parameters."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxpost import trees
from jaxpost.arrays import Tree
from jaxpost.delta import Dense, Insert, Magnitude
from jaxpost.faults import Fault
from jaxpost.interop import names
from jaxpost.interop.adapter_files import Tensors
from jaxpost.interop.config_json import ConfigFields
from jaxpost.interop.names import Slot
from jaxpost.interop.peft import stacked
from jaxpost.interop.peft.modules import PREFIX, Layout, Module, meant, pattern_value, refuse_others
from jaxpost.interop.peft.stacked import Factors

_PLAIN: Mapping[str, tuple[object, ...]] = {
    name: ()
    for name in (
        "layer_replication", "alora_invocation_tokens", "use_qalora", "trainable_token_indices", "velora_config",
        "monteclora_config", "use_bdlora", "arrow_config", "kasa_config",
    )
}  # fmt: skip
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def lora(said: ConfigFields, found: Tensors, layout: Layout, base: Tree | None) -> dict[str, list[Any]]:
    """The edits by path."""
    refuse_others(said, _PLAIN)
    start = str(said.values.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise said.fault(
            "init_lora_weights",
            "the adapter is over what that start leaves of the base's weights, not over the base; save it in PEFT with "
            "path_initial_model_for_weight_conversion, which makes it an adapter of the base",
        )
    chosen = meant(said, layout.modules)
    reader = _Reader(said, found, layout, base)
    for module in chosen:
        reader.module(module)
    if layout.config.tied and any(module.is_table and module.slots[0].path == "embed" for module in chosen):
        _check_tied(said, found, layout.modules)
    reader.experts()
    return reader.edits()


def adalora(said: ConfigFields, found: Tensors, layout: Layout) -> dict[str, list[Any]]:
    refuse_others(said, _PLAIN)
    rank, patterns = said.size("init_r", 12), said.values.get("rank_pattern") or {}
    alpha = said.values.get("lora_alpha", 8)
    alpha = alpha if alpha > 0 else rank
    kept = {name.removesuffix(".lora_E"): sum(map(bool, mask)) for name, mask in patterns.items()}
    parts: dict[str, dict[stacked.Index, tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(dict)
    for module in meant(said, layout.modules):
        r = kept.get(module.name, rank)
        a = found.take(module.key("lora_A"), r, module.inner)
        b = found.take(module.key("lora_B"), module.outer, r)
        values = found.take(module.key("lora_E"), r, 1)
        for slot in module.slots:
            parts[slot.path][slot.index] = a.T, values[:, 0], _cut(b, slot).T
    dropout = float(said.values.get("lora_dropout") or 0.0)
    # By the rank that it started with, whatever is left of it.
    return {
        path: [stacked.triplets(layout.specs[path], of, alpha / (rank + 1e-5), dropout)] for path, of in parts.items()
    }


def _cut(rows: np.ndarray, slot: Slot) -> np.ndarray:
    """A slot's share of what a module has for each of its outputs."""
    return rows[slot.start : slot.start + slot.outer]


def _check_tied(said: ConfigFields, found: Tensors, known: Mapping[str, Module]) -> None:
    """In a tied model an edit of the embedding is one of the head: so it must be there too."""
    if not said.flag("ensure_weight_tying"):
        raise said.fault(
            "ensure_weight_tying",
            "the adapter changes the embedding and not the head, which are one matrix in this model: only both can be",
        )
    embed = next(module for module in known.values() if module.slots[0].path == "embed")
    head = Module("lm_head", embed.slots, ())
    for part in ("lora_A.weight", "lora_B.weight"):
        found.there.pop(head.key(part), None)  # the embedding's own, turned around


class _Reader:
    """What has been read so far, by path and index."""

    def __init__(self, said: ConfigFields, found: Tensors, layout: Layout, base: Tree | None):
        self.said, self.found, self.layout, self.base = said, found, layout, base
        self.specs = layout.specs
        self.factors: dict[str, dict[stacked.Index, Factors]] = defaultdict(dict)
        self.magnitudes: dict[str, dict[stacked.Index, np.ndarray]] = defaultdict(dict)
        self.offsets: dict[str, dict[stacked.Index, np.ndarray]] = defaultdict(dict)

    def scaled(self, name: str) -> tuple[int, float]:
        """A module's rank, and its alpha by that."""
        values = self.said.values
        rank = int(pattern_value(values.get("rank_pattern"), name, self.said.size("r", 8)))
        alpha = pattern_value(values.get("alpha_pattern"), name, values.get("lora_alpha", 8))
        return rank, alpha / (math.sqrt(rank) if self.said.flag("use_rslora") else rank)

    def module(self, module: Module) -> None:
        rank, scale = self.scaled(module.name)
        ends = ("lora_embedding_A", "lora_embedding_B") if module.is_table else ("lora_A.weight", "lora_B.weight")
        a = self.found.take(module.key(ends[0]), rank, module.inner)
        b = self.found.take(module.key(ends[1]), module.outer, rank)
        for slot in module.slots:
            self.factors[slot.path][slot.index] = Factors(a.T, _cut(b, slot).T, scale)
        if self.said.flag("use_dora"):
            magnitude = self.found.take(module.key("lora_magnitude_vector"), module.outer)
            for slot in module.slots:
                self.magnitudes[slot.path][slot.index] = _cut(magnitude, slot)
        if self.said.flag("lora_bias") and not module.is_table:
            if self.said.flag("use_dora"):
                raise self.said.fault("lora_bias", "with use_dora it is not read")
            bias = scale * self.found.take(module.key("lora_B.bias"), module.outer)
            for slot in module.slots:
                self.offsets[f"{slot.path}_bias"][slot.index] = _cut(bias, slot)

    def experts(self) -> None:
        """Factors of tensors that hold all experts: a `[experts * r, in]`, b `[out, r * experts]`. Of the two such
        tensors of a module the one that is wrapped first is inside: `base_layer`."""
        targets = self.said.values.get("target_parameters") or []
        if not targets:
            return
        family, config = self.layout.family, self.layout.config
        there = {name.format(layer=n) for name in family.fused.values() for n in range(config.layers)}
        groups = names.grouped(slot for slot in names.parts(family, config, there) if slot.expert is not None)
        chosen = {n: of for n, of in groups.items() if any(n == t or n.endswith(f".{t}") for t in targets)}
        if len(chosen) < len(groups) and len(targets) != 1 or not chosen:
            raise self.said.fault(
                "target_parameters", f"it must name tensors of this base: {', '.join(list(groups)[:2])}"
            )
        for name, slots in chosen.items():
            holder = name.rsplit(".", 1)[0]
            inside = "base_layer." if len(targets) > 1 and name.endswith("gate_up_proj") else ""
            self._of_all_experts(name, f"{PREFIX}{holder}.{inside}", slots)

    def _of_all_experts(self, name: str, prefix: str, slots: list[Slot]) -> None:
        rank, scale = self.scaled(name)
        count, outer = 1 + max(slot.expert or 0 for slot in slots), max(slot.start + slot.outer for slot in slots)
        a = self.found.take(f"{prefix}lora_A.weight", count * rank, slots[0].inner).reshape(count, rank, -1)
        b = self.found.take(f"{prefix}lora_B.weight", outer, rank * count).reshape(outer, rank, count)
        for slot in slots:
            own = _cut(b, slot)[..., slot.expert]
            self.factors[slot.path][slot.index] = Factors(a[slot.expert].T, own.T, scale)

    def edits(self) -> dict[str, list[Any]]:
        dropout = float(self.said.values.get("lora_dropout") or 0.0)
        made: dict[str, list[Any]] = {}
        for path, parts in self.factors.items():
            made[path] = [stacked.low_rank(self.specs[path], parts, dropout)]
        for path, lengths in self.magnitudes.items():
            made[path].append(self._magnitude(path, lengths))
        for path, parts in self.offsets.items():
            spec = self.specs.get(path)
            if spec is None:
                raise Fault(
                    f"{self.said.file}: lora_bias is true, and {path.removesuffix('_bias')} can have no bias here"
                )
            value = stacked.filled(spec, parts)
            made[path] = [Insert(value) if spec.optional else Dense(value)]
        return made

    def _magnitude(self, path: str, lengths: Mapping[stacked.Index, np.ndarray]) -> Magnitude:
        """The length of each output's weights; in layers without an adapter it is that of the base's."""
        spec = self.specs[path]
        lead, inner, outer = spec.sizes(0), spec.sizes(1), spec.sizes(2)
        one = Magnitude(np.zeros(()), len(inner), len(outer))
        m = np.zeros((*lead, *(1,) * len(inner), *outer), np.float32)
        if len(lengths) < math.prod(lead):
            if self.base is None:
                raise Fault(
                    f"{self.said.file}: use_dora is true in some layers only; reading it needs the base's weights"
                )
            m[:] = np.asarray(one.norm(trees.flatten(self.base)[path]))
        for index, of in lengths.items():
            m[index] = of.reshape(m[index].shape)
        return one.replace(m=jnp.asarray(m))  # pyright: ignore[reportAttributeAccessIssue]
