# SPDX-License-Identifier: Apache-2.0
"""DPO on Anthropic's HH-RLHF (JSON lines of two transcripts, `chosen` and `rejected`, that share their beginning), for
any Llama-shaped model in a Hugging Face directory. Where there is none, a small model first learns to write the chosen
transcripts, and is exported.

    jaxpost train configs/dpo_hh.py --model.path MODEL_DIR --data.train hh_rlhf/harmless.jsonl.gz

    jaxpost train configs/dpo_hh.py:start --model.tokenizer tokenizer.model --data.train hh_rlhf/harmless.jsonl.gz
    jaxpost export runs/dpo_hh_start --to hf MODEL_DIR
    jaxpost train configs/dpo_hh.py:small --model.path MODEL_DIR --data.train hh_rlhf/harmless.jsonl.gz
"""

from dataclasses import replace

from jaxpost.delta import Full, Lora
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import dpo, sft

MODEL = Decoder(vocab=32000, d=128, layers=4, heads=4, kv_heads=2, head_size=32, ffn=384, tied=True)


def base() -> dpo.Config:
    return dpo.Config(
        run="runs/dpo_hh",
        model=dpo.Pretrained("MODEL_DIR", dtype="bfloat16"),
        delta=Lora(rank=16, alpha=32.0),
        data=dpo.Files("hh_rlhf/harmless.jsonl.gz"),
        objective=dpo.Dpo(beta=0.1),
        batches=dpo.Batches(rows=16, seq_len=1024),
        optim=dpo.Optimiser(lr=1e-5, warmup=20),
        train=dpo.Training(steps=0, epochs=1),
    )


def start() -> sft.Config:
    """A small model from nothing that writes chosen transcripts, every token of them."""
    return sft.Config(
        run="runs/dpo_hh_start",
        model=sft.Fresh(MODEL, tokenizer="tokenizer.model"),
        delta=Full(),
        data=sft.Files("hh_rlhf/harmless.jsonl.gz", columns={"chosen": "text", "rejected": "other"}),
        batches=sft.Batches(rows=8, seq_len=512, train_on="all"),
        optim=sft.Optimiser(lr=2e-3, warmup=20),
        train=sft.Training(steps=300, eval_every=100, save_every=100),
    )


def small() -> dpo.Config:
    """Preferences for such a model, in which all weights learn."""
    return replace(
        base(),
        run="runs/dpo_hh_small",
        model=dpo.Pretrained("MODEL_DIR", dtype="float32"),
        delta=Full(),
        batches=dpo.Batches(rows=8, seq_len=512),
        optim=dpo.Optimiser(lr=1e-4, warmup=20),
        train=dpo.Training(steps=100, eval_every=50, save_every=50),
    )


def fresh() -> dpo.Config:
    """A small model from nothing, to see the machinery work on real text where there is no checkpoint."""
    return replace(small(), run="runs/dpo_hh_fresh", model=dpo.Fresh(MODEL, tokenizer="tokenizer.model"))


def tiny() -> dpo.Config:
    """Four steps of a toy, for tests."""
    model = replace(MODEL, d=32, layers=2, heads=2, kv_heads=1, head_size=16, ffn=64)
    return replace(
        fresh(),
        run="runs/dpo_hh_tiny",
        model=dpo.Fresh(model, tokenizer="tokenizer.model"),
        delta=Lora(rank=2),
        batches=dpo.Batches(rows=2, seq_len=512),
        optim=dpo.Optimiser(lr=1e-3, warmup=1),
        train=dpo.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=dpo.Review(examples=4, generations=1),
    )
