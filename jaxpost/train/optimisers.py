# SPDX-License-Identifier: Apache-2.0
"""Optimisers and schedules, from optax, as one config."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from jaxpost.arrays import Tree
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec
from jaxpost.train.paged import paged


@dataclass(frozen=True)
class Optimiser:
    """lr rises linearly over `warmup` steps to its peak, then follows `schedule` down to `final` times the peak, which
    a step behind the run's last would have. Weight decay pulls an edit towards nothing, so the model towards its base;
    it acts on matrices only, never on norms and biases. `clip` bounds the global gradient norm; 0 leaves it alone.
    `paged` keeps the moments in host memory (`train/paged.py`): the same numbers in less of the device's memory."""

    name: Literal["adamw", "adafactor", "sgd", "lion"] = "adamw"
    lr: float = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 0
    final: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    paged: bool = False


def schedule(config: Optimiser, steps: int) -> optax.Schedule:
    """The learning rate by step."""
    if config.warmup >= steps and config.schedule != "constant":
        raise Fault(
            f"optim.warmup is {config.warmup} but the run has {steps} steps; make warmup smaller or the run longer"
        )
    rest = max(1, steps - config.warmup)
    if config.schedule == "constant":
        after = optax.constant_schedule(config.lr)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.lr, config.lr * config.final, rest)
    else:
        after = optax.cosine_decay_schedule(config.lr, rest, config.final)
    if not config.warmup:
        return after
    rise = optax.linear_schedule(config.lr / config.warmup, config.lr, max(1, config.warmup - 1))
    return optax.join_schedules([rise, after], [config.warmup])


def make(config: Optimiser, steps: int, specs: Tree) -> optax.GradientTransformation:
    """The optimiser for a tree of the specs' form."""
    lr = schedule(config, steps)

    def chosen(specs: Tree) -> optax.GradientTransformation:
        decays = jax.tree.map(lambda spec: bool(spec.groups[1] and spec.groups[2]), specs)
        decay: Any = {"weight_decay": config.weight_decay, "mask": decays}
        kinds = {
            "adamw": lambda: optax.adamw(lr, config.b1, config.b2, config.eps, **decay),
            "lion": lambda: optax.lion(lr, config.b1, config.b2, **decay),
            "sgd": lambda: optax.chain(optax.add_decayed_weights(**decay), optax.sgd(lr, config.momentum or None)),
            "adafactor": lambda: as_matrices(optax.adafactor(lr, multiply_by_parameter_scale=False), specs),
        }
        return kinds[config.name]()

    if config.name == "adafactor" and config.weight_decay:
        raise Fault("optim.weight_decay: adafactor here runs without weight decay; set it to 0 or choose adamw")
    if config.name == "adafactor" and config.paged:
        raise Fault("optim.paged: adafactor keeps hardly any moments; leave paged out or choose adamw")
    inner = paged(chosen, specs, config.clip) if config.paged else chosen(specs)
    if not config.clip:
        return inner
    # Either way a state of two parts, so that a run may go on with the other.
    return optax.chain(optax.identity() if config.paged else optax.clip_by_global_norm(config.clip), inner)


def as_matrices(optimiser: optax.GradientTransformation, specs: Tree) -> optax.GradientTransformation:
    """An optimiser that looks at a leaf's shape (Adafactor) made to see each layer's weight as the matrix it is,
    `in x out`: leaves are stacked over layers and split into heads, and their two largest axes mean nothing."""

    def matrix(leaf: Any, spec: ParamSpec) -> Any:
        lead, inner, outer = (math.prod(spec.sizes(group)) for group in range(3))
        return leaf.reshape(lead, inner, outer)

    def init(params: Tree) -> Tree:
        return jax.tree.map(lambda leaf, spec: jax.vmap(optimiser.init)(matrix(leaf, spec)), params, specs)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, form = jax.tree.flatten(updates)
        states = form.flatten_up_to(state)
        wholes = form.flatten_up_to(params)
        done: list[tuple[Any, Any]] = [
            jax.vmap(optimiser.update)(matrix(g, spec), s, matrix(p, spec))
            for g, s, p, spec in zip(leaves, states, wholes, jax.tree.leaves(specs), strict=True)
        ]
        shaped = [new.reshape(g.shape) for (new, _), g in zip(done, leaves, strict=True)]
        return form.unflatten(shaped), form.unflatten([s for _, s in done])

    return optax.GradientTransformation(init, update)
