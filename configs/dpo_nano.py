# SPDX-License-Identifier: Apache-2.0
"""Preferences learned directly by the built-in base model, without a reward model: DPO and its family, on reviews of
which a gold score is known. They go on from where instruction tuning on such reviews ended, which is trained first.

    jaxpost train configs/dpo_nano.py:start
    jaxpost train configs/dpo_nano.py
    jaxpost train configs/dpo_nano.py:simpo
"""

from dataclasses import replace

from jaxpost.delta import Lora
from jaxpost.recipes import dpo, sft


def start() -> sft.Config:
    """Reviews of mixed quality, to be preferred among."""
    return sft.Config(
        run="runs/reviews_nano",
        model=sft.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=16, alpha=16.0),
        data=sft.World("reviews", "sft"),
        batches=sft.Batches(rows=16, seq_len=256),
        optim=sft.Optimiser(lr=5e-3, warmup=10),
        train=sft.Training(steps=120, eval_every=60, eval_batches=4, save_every=60),
    )


def base() -> dpo.Config:
    """DPO against the model that it starts from."""
    return dpo.Config(
        run="runs/dpo_nano",
        model=dpo.Pretrained("nano", dtype="float32", adapter="runs/reviews_nano"),
        delta=Lora(rank=16, alpha=16.0),
        data=dpo.World("reviews", "preference"),
        objective=dpo.Dpo(beta=0.1),
        batches=dpo.Batches(rows=16, seq_len=256),
        optim=dpo.Optimiser(lr=1e-3, warmup=10),
        train=dpo.Training(steps=100, eval_every=50, eval_batches=8, save_every=50),
        judges=("reviews_gold",),
    )


def _by(name: str, objective: dpo.Dpo | dpo.Cpo | dpo.Simpo | dpo.Orpo) -> dpo.Config:
    return replace(base(), run=f"runs/dpo_nano_{name}", objective=objective)


def ipo() -> dpo.Config:
    return _by("ipo", dpo.Dpo("ipo", beta=0.5))


def mpo() -> dpo.Config:
    """Several losses with weights."""
    return _by("mpo", dpo.Dpo("sigmoid", weight=0.8, also={"bco_pair": 0.2, "sft": 1.0}))


def simpo() -> dpo.Config:
    """Without a reference, by mean log-probabilities."""
    return _by("simpo", dpo.Simpo(beta=2.0, gamma=1.0))


def alpha() -> dpo.Config:
    """AlphaPO: SimPO with another shape of reward."""
    return _by("alpha", dpo.Simpo(beta=2.0, gamma=1.0, alpha=0.25))


def cpo() -> dpo.Config:
    return _by("cpo", dpo.Cpo())


def orpo() -> dpo.Config:
    """Tuning and preferring in one run, from the base itself."""
    config = _by("orpo", dpo.Orpo(beta=0.5))
    return replace(config, model=dpo.Pretrained("nano", dtype="float32"), optim=dpo.Optimiser(lr=5e-3, warmup=10))


def stored() -> dpo.Config:
    """The reference is asked once, before the first step."""
    data = dpo.World("reviews", "preference", size=3000)
    return replace(base(), run="runs/dpo_nano_stored", data=data, reference="stored")


def moving() -> dpo.Config:
    """The reference follows the policy (TR-DPO)."""
    return replace(base(), run="runs/dpo_nano_moving", moving=dpo.Moving(every=20, share=1.0))


def tiny() -> dpo.Config:
    """Four steps with little of everything, for tests."""
    return replace(
        base(),
        run="runs/dpo_nano_tiny",
        model=dpo.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=2),
        batches=dpo.Batches(rows=2, seq_len=192),
        optim=dpo.Optimiser(lr=1e-3, warmup=1),
        moving=dpo.Moving(every=2, share=0.6),
        train=dpo.Training(steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=dpo.Review(examples=2, generations=1),
        judges=(),
    )
