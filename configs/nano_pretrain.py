# SPDX-License-Identifier: Apache-2.0
"""The base model that ships with jaxpost: a small Llama that learns to read and write the nano world from generated
text, without instructions. Minutes on one data-centre GPU.

    python tools/nano_tokens.py runs/nano_tokens    # the tokenizer, and the text as tokens, on all cores
    jaxpost train configs/nano_pretrain.py
    jaxpost export runs/nano_pretrain --to hf OUT
"""

from dataclasses import replace

from jaxpost.delta import Full
from jaxpost.models.presets import PRESETS
from jaxpost.recipes import sft

NANO = PRESETS["nano"]


def base() -> sft.Config:
    return sft.Config(
        run="runs/nano_pretrain",
        model=sft.Fresh(NANO, tokenizer="runs/nano_tokens/tokenizer.model"),
        delta=Full(),
        data=sft.Tokens("runs/nano_tokens/tokens.npy"),
        batches=sft.Batches(rows=256, seq_len=512, packing="none"),
        optim=sft.Optimiser(lr=3e-3, schedule="cosine", warmup=200, b2=0.95, weight_decay=0.1, final=0.05),
        train=sft.Training(steps=8000, eval_every=500, save_every=2000, log_every=10, seed=1),
    )


def tiny() -> sft.Config:
    """Four steps of a toy, for tests."""
    config = base()
    model = replace(NANO, d=32, layers=2, heads=2, kv_heads=1, head_size=16, ffn=64, dtype="float32")
    return replace(
        config,
        run="runs/nano_pretrain_tiny",
        model=replace(config.model, model=model),
        data=sft.Tokens("runs/nano_tokens/tokens.npy", hold=8),
        batches=replace(config.batches, rows=8),
        optim=replace(config.optim, warmup=1),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=sft.Review(generations=1),
    )
