# SPDX-License-Identifier: Apache-2.0
"""What full tuning made of the built-in base model as one bit a weight (BitDelta): compressed, then its scales
distilled on the same kind of text.

    jaxpost train configs/flan_nano_full.py
    jaxpost train configs/bitdelta_nano.py
"""

from dataclasses import replace

import flan_nano_full

from jaxpost.recipes import one_bit


def base() -> one_bit.Config:
    full = flan_nano_full.base()
    return one_bit.Config(
        run="runs/bitdelta_nano",
        of=full.run,
        model=full.model,
        data=full.data,
        batches=replace(full.batches, rows=8),
        optim=one_bit.Optimiser(lr=1e-3, schedule="cosine"),
        train=replace(full.train, steps=200, eval_every=100, save_every=100),
        review=full.review,
    )


def tiny() -> one_bit.Config:
    """Four steps with little of everything, for tests."""
    full = flan_nano_full.tiny()
    config = base()
    return replace(
        config,
        run="runs/bitdelta_nano_tiny",
        of=full.run,
        data=full.data,
        batches=full.batches,
        train=full.train,
        review=replace(full.review, examples=0),
    )
