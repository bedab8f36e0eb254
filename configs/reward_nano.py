# SPDX-License-Identifier: Apache-2.0
"""Reward models on the built-in base model: which of two reviews is the better one, where a gold score is known.

jaxpost train configs/reward_nano.py
jaxpost train configs/reward_nano.py:ranked
"""

from dataclasses import replace

from jaxpost.delta import Both, Head, Lora
from jaxpost.recipes import reward


def base() -> reward.Config:
    """Pairs of reviews, one label in ten wrong."""
    return reward.Config(
        run="runs/reward_nano",
        model=reward.Pretrained("nano", dtype="float32"),
        delta=Both(Lora(rank=16, alpha=16.0), Head(1)),
        data=reward.World("reviews", "preference"),
        objective=reward.BradleyTerry(centring=0.01),
        batches=reward.Batches(rows=16, seq_len=256),
        optim=reward.Optimiser(lr=2e-3, warmup=10),
        train=reward.Training(steps=150, eval_every=50, eval_batches=8, save_every=50),
    )


def ranked() -> reward.Config:
    """Several reviews of one thing, in order."""
    return replace(
        base(), run="runs/reward_nano_ranked", data=reward.World("reviews", "ranking"), objective=reward.Ranked(0.01)
    )


def pointwise() -> reward.Config:
    """The gold score itself, to be met."""
    return replace(
        base(),
        run="runs/reward_nano_pointwise",
        data=reward.World("reviews", "ranking"),
        objective=reward.Pointwise(),
    )


def two_class() -> reward.Config:
    """Single reviews called good or bad."""
    return replace(
        base(),
        run="runs/reward_nano_two_class",
        delta=Both(Lora(rank=16, alpha=16.0), Head(2)),
        data=reward.World("reviews", "unpaired"),
        objective=reward.TwoClass(),
    )


def tiny() -> reward.Config:
    """Four steps with little of everything, for tests."""
    return replace(
        base(),
        run="runs/reward_nano_tiny",
        delta=Both(Lora(rank=2), Head(1)),
        batches=reward.Batches(rows=2, seq_len=192),
        optim=reward.Optimiser(lr=1e-3, warmup=1),
        train=reward.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=reward.Review(examples=2, generations=0),
    )
