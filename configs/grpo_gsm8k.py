# SPDX-License-Identifier: Apache-2.0
"""GRPO on grade-school mathematics (GSM8K: JSON lines of question and answer): eight answers to every question, each
rewarded if its last number is the right one, and a little if it ends by itself. For any Llama-shaped model in a Hugging
Face directory, best one that can reason a little already, or the run that taught it to.

    jaxpost train configs/grpo_gsm8k.py --model.path MODEL_DIR --data.train gsm8k/train.jsonl
    jaxpost train configs/grpo_gsm8k.py --model.path MODEL_DIR --model.adapter runs/sft_gsm8k_lora \\
        --data.train gsm8k/train.jsonl
    jaxpost train configs/grpo_gsm8k.py:fresh --model.tokenizer tokenizer.model --data.train gsm8k/train.jsonl
"""

from dataclasses import replace

from jaxpost.delta import Full, Lora
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import grpo


def base() -> grpo.Config:
    return grpo.Config(
        run="runs/grpo_gsm8k",
        model=grpo.Pretrained("MODEL_DIR", dtype="bfloat16"),
        delta=Lora(rank=16, alpha=32.0),
        data=grpo.Files("gsm8k/train.jsonl", columns={"question": "prompt"}),
        rewards=(grpo.Function("number"), grpo.Function("ended", weight=0.1)),
        rollout=grpo.Rollout(prompts=32, samples=8, prompt_tokens=256, answer_tokens=512, varied=True),
        objective=grpo.Objective("dapo", high=0.28),
        optim=grpo.Optimiser(lr=1e-5, schedule="constant", warmup=10),
        train=grpo.Training(steps=200, microbatches=16, eval_every=20, eval_batches=4, save_every=20),
        review=grpo.Review(examples=0, generations=4),
    )


def fresh() -> grpo.Config:
    """A small model from nothing, to see the machinery work on real text where there is no checkpoint."""
    config = base()
    model = Decoder(vocab=32000, d=128, layers=4, heads=4, kv_heads=2, head_size=32, ffn=384, tied=True)
    return replace(
        config,
        run="runs/grpo_gsm8k_fresh",
        model=grpo.Fresh(model, tokenizer="tokenizer.model"),
        delta=Full(),
        rollout=grpo.Rollout(prompts=4, samples=4, prompt_tokens=128, answer_tokens=32),
        optim=grpo.Optimiser(lr=1e-3, schedule="constant"),
        train=grpo.Training(steps=20, eval_every=10, eval_batches=1, save_every=10),
    )


def tiny() -> grpo.Config:
    """Four steps of a toy, for tests."""
    config = fresh()
    assert isinstance(config.model, grpo.Fresh)
    model = replace(config.model.model, d=32, layers=2, heads=2, kv_heads=1, head_size=16, ffn=64)
    return replace(
        config,
        run="runs/grpo_gsm8k_tiny",
        model=replace(config.model, model=model),
        delta=Lora(rank=2),
        rollout=grpo.Rollout(prompts=2, samples=2, prompt_tokens=128, answer_tokens=8),
        data=replace(config.data, hold=2),
        train=grpo.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=grpo.Review(examples=0, generations=1),
    )
