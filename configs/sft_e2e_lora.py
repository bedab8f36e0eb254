# SPDX-License-Identifier: Apache-2.0
"""LoRA on restaurant descriptions written from their facts (E2E NLG: CSV of mr and ref), for any model in a Hugging
Face directory.

    jaxpost train configs/sft_e2e_lora.py --model.path MODEL_DIR --data.train trainset.csv --data.test devset.csv
    jaxpost train configs/sft_e2e_lora.py:fresh --model.tokenizer tokenizer.model --data.train trainset.csv
"""

from dataclasses import replace

from jaxpost.delta import Full, Lora
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import sft


def base() -> sft.Config:
    return sft.Config(
        run="runs/sft_e2e_lora",
        model=sft.Pretrained("MODEL_DIR", dtype="bfloat16"),
        delta=Lora(rank=8, alpha=16.0),
        data=sft.Files("trainset.csv", columns={"mr": "prompt", "ref": "completion"}),
        batches=sft.Batches(rows=16, seq_len=512),
        optim=sft.Optimiser(lr=2e-4, warmup=50),
        train=sft.Training(steps=0, epochs=3),
    )


def fresh() -> sft.Config:
    """A small model from nothing, to see the machinery work on real text where there is no checkpoint."""
    config = base()
    model = Decoder(vocab=32000, d=128, layers=4, heads=4, kv_heads=2, head_size=32, ffn=384, tied=True)
    return replace(
        config,
        run="runs/sft_e2e_fresh",
        model=sft.Fresh(model, tokenizer="tokenizer.model"),
        delta=Full(),
        batches=sft.Batches(rows=8, seq_len=256),
        optim=sft.Optimiser(lr=2e-3, warmup=20),
        train=sft.Training(steps=300, eval_every=100, save_every=100),
    )


def tiny() -> sft.Config:
    """Four steps of a toy, for tests."""
    config = fresh()
    assert isinstance(config.model, sft.Fresh)
    model = replace(config.model.model, d=32, layers=2, heads=2, kv_heads=1, head_size=16, ffn=64)
    return replace(
        config,
        run="runs/sft_e2e_tiny",
        model=replace(config.model, model=model),
        batches=sft.Batches(rows=8, seq_len=64),
        data=replace(config.data, hold=16),
        optim=sft.Optimiser(lr=1e-3, warmup=1),
        train=sft.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=sft.Review(generations=1),
    )
