# SPDX-License-Identifier: Apache-2.0
"""GRPO on the built-in base model: its own answers to tasks, rewarded by whether they are right. It goes on from where
instruction tuning ended, which is trained first.

    jaxpost train configs/flan_nano_lora.py
    jaxpost train configs/grpo_nano.py
"""

from dataclasses import replace

from jaxpost.delta import Lora
from jaxpost.recipes import grpo


def base() -> grpo.Config:
    return grpo.Config(
        run="runs/grpo_nano",
        model=grpo.Pretrained("nano", dtype="float32", adapter="runs/flan_nano_lora"),
        delta=Lora(rank=16, alpha=16.0),
        data=grpo.World("answers", "prompts"),
        rewards=(grpo.Function("exact"),),
        rollout=grpo.Rollout(prompts=16, samples=8, prompt_tokens=96, answer_tokens=24),
        optim=grpo.Optimiser(lr=1e-3, schedule="constant", warmup=5),
        train=grpo.Training(steps=60, eval_every=20, eval_batches=2, save_every=20),
        review=grpo.Review(examples=0, generations=3),
    )


def tiny() -> grpo.Config:
    """Four steps with little of everything, for tests."""
    config = base()
    return replace(
        config,
        run="runs/grpo_nano_tiny",
        model=grpo.Pretrained("nano", dtype="float32"),
        rewards=(grpo.Function("pattern:[aeiou]$"),),
        delta=Lora(rank=2),
        rollout=replace(config.rollout, prompts=4, samples=2, prompt_tokens=48, answer_tokens=8),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=grpo.Review(examples=0, generations=1),
    )
