# SPDX-License-Identifier: Apache-2.0
"""Instruction tuning the FLAN way, small enough for a laptop: LoRA on the built-in base model, most clusters of the
built-in tasks trained, some tasks and two whole clusters held out.

    jaxpost train configs/flan_nano_lora.py
    jaxpost train configs/flan_nano_lora.py --delta.rank 32 --optim.lr 2e-3 --run runs/rank32
"""

from dataclasses import replace

from jaxpost.delta import Lora
from jaxpost.recipes import sft


def base() -> sft.Config:
    return sft.Config(
        run="runs/flan_nano_lora",
        model=sft.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=16, alpha=16.0),
        data=sft.Tasks(
            held_out_tasks=("smaller_thing", "list_has", "similar", "job_of", "mood", "kind_follows"),
            held_out_clusters=("comparison", "reading"),
        ),
        batches=sft.Batches(rows=32, seq_len=128),
        optim=sft.Optimiser(lr=5e-3, warmup=10),
        train=sft.Training(steps=100, eval_every=50, eval_batches=4, save_every=50),
    )


def tiny() -> sft.Config:
    """Four steps with little of everything, for tests."""
    config = base()
    return replace(
        config,
        run="runs/flan_nano_lora_tiny",
        delta=Lora(rank=2, alpha=4.0),
        data=sft.Tasks(only=("arithmetic", "sentiment"), held_out_tasks=("mood",), held_out_clusters=("tracking",)),
        batches=sft.Batches(rows=8, seq_len=64),
        optim=replace(config.optim, warmup=1),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=sft.Review(examples=2, generations=1, rows=8),
    )
