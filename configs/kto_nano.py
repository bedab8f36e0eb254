# SPDX-License-Identifier: Apache-2.0
"""Single answers called good or bad, learned from directly (KTO) by the built-in base model: reviews of which a gold
score is known. It goes on from where instruction tuning on such reviews ended, which is trained first.

    jaxpost train configs/dpo_nano.py:start
    jaxpost train configs/kto_nano.py
    jaxpost train configs/kto_nano.py:pairs
"""

from dataclasses import replace

from jaxpost.delta import Lora
from jaxpost.recipes import kto


def base() -> kto.Config:
    return kto.Config(
        run="runs/kto_nano",
        model=kto.Pretrained("nano", dtype="float32", adapter="runs/reviews_nano"),
        delta=Lora(rank=16, alpha=16.0),
        data=kto.World("reviews", "unpaired"),
        objective=kto.Unpaired("kto", beta=0.1),
        batches=kto.Batches(rows=16, seq_len=256),
        optim=kto.Optimiser(lr=1e-3, warmup=10),
        train=kto.Training(steps=100, eval_every=50, eval_batches=8, save_every=50),
        judges=("reviews_gold",),
    )


def pairs() -> kto.Config:
    """From preferences, each half an answer by itself."""
    return replace(base(), run="runs/kto_nano_pairs", data=kto.World("reviews", "preference"))


def apo() -> kto.Config:
    """Without a divergence to be estimated, so that batches may be cut."""
    return replace(base(), run="runs/kto_nano_apo", objective=kto.Unpaired("apo_zero"))


def bco() -> kto.Config:
    return replace(base(), run="runs/kto_nano_bco", objective=kto.Unpaired("bco"))


def tiny() -> kto.Config:
    """Four steps with little of everything, for tests: preferences as single answers."""
    return replace(
        base(),
        run="runs/kto_nano_tiny",
        model=kto.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=2),
        data=kto.World("reviews", "preference", 40),
        batches=kto.Batches(rows=2, seq_len=192),
        optim=kto.Optimiser(lr=1e-3, warmup=1),
        train=kto.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=kto.Review(examples=2, generations=1),
        judges=(),
    )
