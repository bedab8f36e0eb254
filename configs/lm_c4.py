# SPDX-License-Identifier: Apache-2.0
"""Language-model tuning on web text: C4 as TensorFlow Datasets prepared it (array_record or tfrecord), read without
TensorFlow. Documents are joined and cut into rows; every token is trained.

    jaxpost train configs/lm_c4.py --model.path MODEL_DIR --data.data-dir ~/tensorflow_datasets
    jaxpost train configs/lm_c4.py:fresh --model.tokenizer tokenizer.model --data.data-dir ~/tensorflow_datasets
"""

from dataclasses import replace

from jaxpost.delta import Full, Lora
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import sft


def base() -> sft.Config:
    return sft.Config(
        run="runs/lm_c4",
        model=sft.Pretrained("MODEL_DIR", dtype="bfloat16"),
        delta=Lora(rank=16, alpha=32.0),
        data=sft.Tfds("c4/en", "tensorflow_datasets", test="validation"),
        batches=sft.Batches(rows=16, seq_len=1024, packing="blocks", train_on="all"),
        optim=sft.Optimiser(lr=1e-4, warmup=50),
        train=sft.Training(steps=1000),
    )


def fresh() -> sft.Config:
    """A small model from nothing, to see the machinery work on real text where there is no checkpoint."""
    config = base()
    model = Decoder(vocab=32000, d=128, layers=4, heads=4, kv_heads=2, head_size=32, ffn=384, tied=True)
    return replace(
        config,
        run="runs/lm_c4_fresh",
        model=sft.Fresh(model, tokenizer="tokenizer.model"),
        delta=Full(),
        batches=replace(config.batches, rows=8, seq_len=256),
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
        run="runs/lm_c4_tiny",
        model=replace(config.model, model=model),
        batches=replace(config.batches, seq_len=64),
        optim=sft.Optimiser(lr=1e-3, warmup=1),
        train=sft.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=sft.Review(generations=1),
    )
