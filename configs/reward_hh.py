# SPDX-License-Identifier: Apache-2.0
"""A reward model from Anthropic's HH-RLHF (JSON lines of two transcripts, `chosen` and `rejected`, that share their
beginning), for any Llama-shaped model in a Hugging Face directory.

    jaxpost train configs/reward_hh.py --model.path MODEL_DIR --data.train hh_rlhf/harmless.jsonl.gz
    jaxpost train configs/reward_hh.py:fresh --model.tokenizer tokenizer.model --data.train hh_rlhf/harmless.jsonl.gz
"""

from dataclasses import replace

from jaxpost.delta import Both, Full, Head, Lora
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import reward


def base() -> reward.Config:
    return reward.Config(
        run="runs/reward_hh",
        model=reward.Pretrained("MODEL_DIR", dtype="bfloat16"),
        delta=Both(Lora(rank=16, alpha=32.0, dropout=0.05), Head(1)),
        data=reward.Files("hh_rlhf/harmless.jsonl.gz"),
        objective=reward.BradleyTerry(centring=0.01),
        batches=reward.Batches(rows=16, seq_len=1024),
        optim=reward.Optimiser(lr=1e-4, warmup=20),
        train=reward.Training(steps=0, epochs=1),
    )


def fresh() -> reward.Config:
    """A small model from nothing, to see the machinery work on real text where there is no checkpoint."""
    config = base()
    model = Decoder(vocab=32000, d=128, layers=4, heads=4, kv_heads=2, head_size=32, ffn=384, tied=True)
    return replace(
        config,
        run="runs/reward_hh_fresh",
        model=reward.Fresh(model, tokenizer="tokenizer.model"),
        delta=Both(Full(), Head(1)),
        batches=reward.Batches(rows=8, seq_len=512),
        optim=reward.Optimiser(lr=1e-3, warmup=20),
        train=reward.Training(steps=200, eval_every=50, save_every=100),
    )


def tiny() -> reward.Config:
    """Four steps of a toy, for tests."""
    config = fresh()
    assert isinstance(config.model, reward.Fresh)
    model = replace(config.model.model, d=32, layers=2, heads=2, kv_heads=1, head_size=16, ffn=64)
    return replace(
        config,
        run="runs/reward_hh_tiny",
        model=replace(config.model, model=model),
        delta=Both(Lora(rank=2), Head(1)),
        batches=reward.Batches(rows=2, seq_len=256),
        optim=reward.Optimiser(lr=1e-3, warmup=1),
        train=reward.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=reward.Review(examples=4, generations=0),
    )
