# SPDX-License-Identifier: Apache-2.0
"""Constitutional AI on the built-in base model: an assistant that is right but rude when it is provoked learns from its
own critiques, revisions and judgements to be kind, and stays right. It starts from one that only helps, and that knows
how to criticise, revise and judge, which is trained first.

    jaxpost train configs/constitutional_nano.py:assistant
    jaxpost train configs/constitutional_nano.py
    jaxpost train configs/constitutional_nano.py --judging.principles my_principles.txt --run runs/mine
"""

from dataclasses import replace

from jaxpost.delta import Both, Head, Lora
from jaxpost.recipes import constitutional, ppo, reward, sft
from jaxpost.recipes.constitutional import Also, Answering, ByPpo, Function, Judging, Prompts, Revising
from jaxpost.recipes.corpus import World
from jaxpost.sample import Sampling

WRITES = Sampling(max_new=24, temperature=1.0)


def assistant() -> sft.Config:
    """What constitutional AI starts from."""
    return sft.Config(
        run="runs/manners_nano",
        model=sft.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=16, alpha=16.0),
        data=World("manners", "sft"),
        batches=sft.Batches(rows=24, seq_len=128),
        optim=sft.Optimiser(lr=5e-3, warmup=10),
        train=sft.Training(steps=200, eval_every=50, eval_batches=4, save_every=50),
    )


def base() -> constitutional.Config:
    return constitutional.Config(
        run="runs/constitutional_nano",
        model=sft.Pretrained("nano", dtype="float32", adapter="runs/manners_nano"),
        prompts=Prompts(World("manners", "prompts"), count=128, held_out=128),
        helpful=Prompts(World("manners", "plain"), count=48, held_out=128),
        helpful_weight=0.5,
        revising=Revising("nano", "nano", "", "nano", "", rounds=2, sampling=replace(WRITES, temperature=0.3)),
        tuning=sft.Config(
            "",
            delta=Lora(rank=8, alpha=8.0),
            batches=sft.Batches(rows=8, seq_len=128),
            optim=sft.Optimiser(lr=1e-3, warmup=2),
            train=sft.Training(steps=10, eval_every=0, save_every=10),
            review=sft.Review(examples=0, generations=0),
        ),
        answering=Answering(samples=3, pairs=2, sampling=WRITES, rows=64),
        judging=Judging("nano", "nano", tie=0.1, labels="soft"),
        learning=ByPpo(
            reward_model=reward.Config(
                "",
                delta=Both(Lora(rank=8, alpha=8.0), Head(1)),
                batches=reward.Batches(rows=8, seq_len=128),
                optim=reward.Optimiser(lr=2e-3, warmup=5),
                train=reward.Training(steps=40, eval_every=0, save_every=40),
                review=reward.Review(examples=64, generations=0),
            ),
            recipe=ppo.Config(
                "",
                delta=Both(Lora(rank=8, alpha=8.0), Head(1)),
                rewards=(),
                rollout=ppo.Rollout(prompts=8, samples=4, prompt_tokens=64, answer_tokens=24, unended=-1.0),
                epochs=2,
                minibatches=2,
                penalty=ppo.Penalty(coefficient=0.2),
                optim=ppo.Optimiser(lr=3e-4, schedule="constant", warmup=5),
                train=ppo.Training(steps=14, eval_every=0, save_every=7),
                review=ppo.Review(examples=0, generations=0),
            ),
        ),
        also={"human": Also(World("manners", "preference"), weight=0.5, count=128)},
        measures=(Function("manners_kind"), Function("manners_right")),
    )


def tiny() -> constitutional.Config:
    """All stages with little of everything, for tests."""
    config = base()
    assert isinstance(config.learning, ByPpo)
    steps = sft.Training(steps=2, eval_every=0, save_every=1)
    optim = sft.Optimiser(lr=1e-3, warmup=1)
    learner, judge = config.learning.recipe, config.learning.reward_model
    return replace(
        config,
        run="runs/constitutional_nano_tiny",
        model=replace(config.model, adapter=""),
        prompts=replace(config.prompts, count=8, held_out=4),
        helpful=Prompts(World("manners", "plain"), count=4, held_out=4),
        revising=replace(config.revising, rounds=1, sampling=replace(WRITES, max_new=8)),
        tuning=replace(
            config.tuning,
            delta=Lora(rank=2),
            batches=sft.Batches(rows=8, seq_len=64),
            optim=optim,
            train=steps,
        ),
        answering=Answering(samples=2, sampling=replace(WRITES, max_new=8), rows=8),
        judging=Judging("nano", "nano", labels="soft"),
        learning=ByPpo(
            replace(
                judge,
                delta=Both(Lora(rank=2), Head(1)),
                batches=reward.Batches(rows=8, seq_len=96),
                optim=optim,
                train=steps,
            ),
            replace(
                learner,
                delta=Both(Lora(rank=2), Head(1)),
                rollout=ppo.Rollout(prompts=4, samples=2, prompt_tokens=48, answer_tokens=8),
                epochs=1,
                minibatches=1,
                train=steps,
            ),
        ),
        also={"human": Also(World("manners", "preference"), count=16)},
    )
