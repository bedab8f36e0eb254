# SPDX-License-Identifier: Apache-2.0
"""P-tuning v2 on the built-in base model: keys and values in front of every layer, and a head that tells how somebody
feels. And by `spans` low-rank updates and a head that finds what answers a question in a little story, for which a
short prefix is too little.

    jaxpost train configs/classify_nano_prefix.py
    jaxpost train configs/classify_nano_prefix.py:spans
"""

from dataclasses import replace

from jaxpost.delta import Both, Head, Lora, Prefix
from jaxpost.recipes import classify


def base() -> classify.Config:
    return classify.Config(
        run="runs/classify_nano_prefix",
        model=classify.Pretrained("nano", dtype="float32"),
        labels=("happy", "sad", "angry", "scared"),
        delta=Both(Prefix(8), Head(4)),
        data=classify.BuiltIn("mood"),
        batches=classify.Batches(rows=16, seq_len=128),
        optim=classify.Optimiser(lr=1e-2, warmup=10),
        train=classify.Training(steps=60, eval_every=20, eval_batches=4, save_every=20),
    )


def spans() -> classify.Config:
    return replace(
        base(),
        run="runs/classify_nano_spans",
        kind="span",
        labels=(),
        delta=Both(Lora(rank=16, alpha=16.0), Head(2)),
        data=classify.BuiltIn("read_where"),
        optim=classify.Optimiser(lr=5e-3, warmup=10),
        train=classify.Training(steps=100, eval_every=25, eval_batches=4, save_every=25),
    )


def tiny() -> classify.Config:
    """Four steps with little of everything, for tests."""
    config = base()
    return replace(
        config,
        run="runs/classify_nano_prefix_tiny",
        delta=Both(Prefix(2), Head(4)),
        batches=classify.Batches(rows=8, seq_len=64),
        optim=replace(config.optim, warmup=1),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=classify.Review(examples=8, generations=0),
    )
