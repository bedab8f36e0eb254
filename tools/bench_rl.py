# SPDX-License-Identifier: Apache-2.0
"""How long a step of a policy that learns from its own answers takes, phase by phase, and how much memory.

    python tools/bench_rl.py --recipe grpo --shape llama-1b --prompts 32 --samples 8 --prompt 256 --answer 256

Random weights and prompts, answers that never end, the very programs that `jaxpost train` runs. One JSON line: medians
over --steps steps behind --warmup ones, of sampling (with laying out and rewarding), of what policy, critic, reference
and reward model say of the answers, and of the update. PPO has a reward model over the same base.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxpost import delta, params
from jaxpost.models import decoder
from jaxpost.models.presets import PRESETS
from jaxpost.recipes import grpo, ppo
from jaxpost.recipes.assembly import assemble
from jaxpost.recipes.drawn import drawn
from jaxpost.recipes.feed import place
from jaxpost.recipes.rollouts.prompts import Request
from jaxpost.recipes.rollouts.rollout import Rollout, Rollouts
from jaxpost.recipes.rollouts.scoring import Function, Scoring
from jaxpost.shard import MeshShape, make_mesh


@dataclass
class Silent:
    """A tokenizer that has no end and says nothing."""

    pad: int = 0
    ends: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Random:
    """Endless prompts of one length."""

    def __init__(self, length: int, vocab: int):
        self._rng, self._length, self._vocab = np.random.default_rng(0), length, vocab

    def next(self) -> Request:
        return Request(tuple(self._rng.integers(0, self._vocab, self._length).tolist()), "", {})


def config_of(options: argparse.Namespace) -> Any:
    rollout = Rollout(
        options.prompts, options.samples, options.prompt, options.answer, slots=options.slots, merged=options.merged
    )
    training = grpo.Training(remat=options.remat, microbatches=options.microbatches)
    model = grpo.Fresh(PRESETS[options.shape], tokenizer="")
    rewards, lora = (Function("ended"),), delta.Lora(rank=16, alpha=32.0)
    if options.recipe == "ppo":
        both, cut = delta.Both(lora, delta.Head(1)), options.minibatches
        return ppo.Config(
            "", model, both, rewards=rewards, rollout=rollout, epochs=options.epochs, minibatches=cut, train=training
        )
    objective = grpo.Objective(kl=options.kl)
    return grpo.Config(
        "",
        model,
        lora,
        rewards=rewards,
        rollout=rollout,
        objective=objective,
        epochs=options.epochs,
        minibatches=options.minibatches,
        train=training,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    config, recipe = config_of(options), {"grpo": grpo, "ppo": ppo}[options.recipe]
    model, mesh = config.model.model, make_mesh(MeshShape())
    with jax.set_mesh(mesh):
        specs = params.filled(decoder.specs(model))
        assembly = assemble(model, specs, config.delta, config.optim, 1000, mesh, extra=config.extra)
        base = drawn(specs, specs, mesh, jax.random.key(0))
        state, fixed = assembly.make(jax.random.key(1), base)
        frozen, judges = {"base": base, "fixed": fixed}, {}
        if options.recipe == "ppo":
            judge = delta.Both(delta.Lora(rank=16, alpha=32.0), delta.Head(1))(decoder.specs(model))
            judges = {"judge": delta.bind(base, params.init(judge, jax.random.key(2)))}
        scores = Scoring(config.rewards)
        programs = {
            name: program.call.lower(*program.arguments).compile()
            for name, program in recipe.programs(config, assembly, judges).items()
        }
        feed = Rollouts(
            rollout=config.rollout,
            model=model,
            tokenizer=Silent(),  # pyright: ignore[reportArgumentType]
            prompts=Random(options.prompt, model.vocab),  # pyright: ignore[reportArgumentType]
            held=lambda: None,  # pyright: ignore[reportArgumentType]
            scoring=scores,
            judges=judges,
            seed=0,
            steps=0,
            updates=1,
            eval_batches=0,
        )
        feed.begin(frozen, programs, mesh)
        key = jax.device_put(jax.random.key(0), jax.tree.leaves(assembly.state)[0].sharding)
        times: list[dict[str, float]] = []
        for _ in range(options.warmup + options.steps):
            begun = time.monotonic()
            asked = [feed.prompts.next() for _ in range(config.rollout.prompts)]
            batch = dict(feed._sampled(feed._weights(state), asked, feed.step))
            batch["group"] = np.repeat(np.arange(options.prompts, dtype=np.int32), options.samples)
            sampled = time.monotonic()
            batch |= feed._observed(state, batch)
            observed = time.monotonic()
            state, metrics = programs["step"](state, frozen, place(batch, mesh), key)
            jax.block_until_ready(metrics)
            done = time.monotonic()
            feed.step += 1
            spans = {"sample_s": sampled - begun, "observe_s": observed - sampled, "update_s": done - observed}
            times.append({**spans, "step_s": done - begun})
    medians = {name: statistics.median(t[name] for t in times[options.warmup :]) for name in times[0]}
    stats = jax.devices()[0].memory_stats() or {}
    drawn_tokens = config.rollout.rows * options.answer
    return {
        **vars(options),
        "device": jax.devices()[0].device_kind,
        **{name: round(value, 3) for name, value in medians.items()},
        "sampled_tokens_per_second": round(drawn_tokens / medians["sample_s"]),
        "tokens_per_second": round(config.rollout.rows * config.rollout.length / medians["step_s"]),
        "peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
        "loss": float(metrics["loss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=("grpo", "ppo"), default="grpo")
    parser.add_argument("--shape", choices=sorted(PRESETS), default="llama-1b")
    parser.add_argument("--remat", default="most")
    parser.add_argument("--merged", action="store_true")
    parser.add_argument("--kl", type=float, default=0.0)
    for name, default in (("prompts", 32), ("samples", 8), ("prompt", 256), ("answer", 256), ("slots", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("epochs", 1), ("minibatches", 1), ("microbatches", 8), ("steps", 3), ("warmup", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
