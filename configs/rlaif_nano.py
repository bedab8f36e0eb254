# SPDX-License-Identifier: Apache-2.0
"""AI feedback on the built-in base model: it answers, judges its own answers by the principles of the built-in set, and
learns from that by DPO; in one round, or in several, each with the model of the one before (`self_rewarding`). It
starts from an assistant that can judge, which is trained first.

    jaxpost train configs/constitutional_nano.py:assistant
    jaxpost train configs/rlaif_nano.py
    jaxpost train configs/rlaif_nano.py:self_rewarding
"""

from dataclasses import replace

from jaxpost.delta import Lora
from jaxpost.recipes import dpo, rlaif
from jaxpost.recipes.corpus import World
from jaxpost.recipes.rlaif import Answering, ByDpo, Function, Judging, Prompts
from jaxpost.sample import Sampling


def base() -> rlaif.Config:
    return rlaif.Config(
        run="runs/rlaif_nano",
        model=rlaif.Pretrained("nano", dtype="float32", adapter="runs/manners_nano"),
        prompts=Prompts(World("manners", "prompts"), count=128, held_out=128),
        answering=Answering(samples=3, pairs=2, sampling=Sampling(max_new=24, temperature=1.0), rows=64),
        judging=Judging("nano", "nano", tie=0.1),
        learning=ByDpo(
            dpo.Config(
                "",
                delta=Lora(rank=8, alpha=16.0),
                objective=dpo.Dpo(beta=0.1),
                batches=dpo.Batches(rows=8, seq_len=128),
                optim=dpo.Optimiser(lr=5e-4, warmup=5),
                train=dpo.Training(steps=30, eval_every=15, eval_batches=2, save_every=15),
                review=dpo.Review(examples=0, generations=0),
            )
        ),
        measures=(Function("manners_kind"), Function("manners_right")),
    )


def self_rewarding() -> rlaif.Config:
    """Two rounds, in each of which the model of the one before answers and judges: fewer steps, as the second finds
    little left to prefer."""
    config = base()
    assert isinstance(config.learning, ByDpo)
    fewer = dpo.Training(steps=10, eval_every=0, save_every=10)
    learning = ByDpo(replace(config.learning.recipe, train=fewer))
    return replace(config, run="runs/self_rewarding_nano", keep="extremes", rounds=2, learning=learning)


def tiny() -> rlaif.Config:
    """Two rounds with little of everything, for tests."""
    config = self_rewarding()
    assert isinstance(config.learning, ByDpo)
    return replace(
        config,
        run="runs/rlaif_nano_tiny",
        model=rlaif.Pretrained("nano", dtype="float32"),
        prompts=replace(config.prompts, count=8, held_out=4),
        answering=Answering(samples=2, sampling=Sampling(max_new=8, temperature=1.0), rows=8),
        judging=Judging("nano", "nano"),
        learning=ByDpo(
            replace(
                config.learning.recipe,
                delta=Lora(rank=2),
                batches=dpo.Batches(rows=8, seq_len=96),
                optim=dpo.Optimiser(lr=1e-3, warmup=1),
                train=dpo.Training(steps=2, eval_every=0, save_every=1),
            )
        ),
        rounds=2,
    )
