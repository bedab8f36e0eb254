# SPDX-License-Identifier: Apache-2.0
"""PPO on the built-in base model, policy and critic as one delta with a head: reviews, rewarded by a reward model over
the same base, while a gold score is watched (a weight of 0). The model that writes reviews, and the reward model, are
trained first.

    jaxpost train configs/dpo_nano.py:start
    jaxpost train configs/reward_nano.py
    jaxpost train configs/ppo_nano.py
    jaxpost train configs/ppo_nano.py:gold
"""

from dataclasses import replace

from jaxpost.delta import Both, Head, Lora
from jaxpost.recipes import ppo


def base() -> ppo.Config:
    return ppo.Config(
        run="runs/ppo_nano",
        model=ppo.Pretrained("nano", dtype="float32", adapter="runs/reviews_nano"),
        delta=Both(Lora(rank=16, alpha=16.0), Head(1)),
        data=ppo.World("reviews", "prompts"),
        rewards=(
            ppo.RewardModel("runs/reward_nano", name="judge"),
            ppo.Function("reviews_gold", weight=0.0, name="gold"),
        ),
        rollout=ppo.Rollout(prompts=64, samples=1, prompt_tokens=48, answer_tokens=80, unended=-1.0),
        penalty=ppo.Penalty(coefficient=0.05),
        objective=ppo.Objective(critic_steps=2),
        epochs=2,
        minibatches=2,
        optim=ppo.Optimiser(lr=1e-3, schedule="constant", warmup=5),
        train=ppo.Training(steps=60, eval_every=20, eval_batches=2, save_every=20),
        review=ppo.Review(examples=0, generations=3),
    )


def gold() -> ppo.Config:
    """Rewarded by the gold score itself."""
    return replace(base(), run="runs/ppo_nano_gold", rewards=(ppo.Function("reviews_gold", name="gold"),))


def tiny() -> ppo.Config:
    """Four steps with little of everything, for tests."""
    config = base()
    return replace(
        config,
        run="runs/ppo_nano_tiny",
        model=ppo.Pretrained("nano", dtype="float32"),
        delta=Both(Lora(rank=2), Head(1)),
        rewards=(ppo.Function("reviews_gold"), ppo.Function("ended", weight=0.5)),
        rollout=replace(config.rollout, prompts=4, answer_tokens=8),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=ppo.Review(examples=0, generations=1),
    )
