# SPDX-License-Identifier: Apache-2.0
"""How far a weak reward model can be trusted: what it is driven to, and what is true meanwhile, by the KL penalty.

    python tools/overoptimise.py --out runs/overoptimise
    python tools/overoptimise.py --out runs/large --coefficients 0 0.02 0.05 0.1 --seeds 3 --steps 300 --prompts 256

In the built-in world of reviews, where the true score is known: instruction tuning; a reward model from a few pairs
that a poor judge compared, who likes length and a pet word; then PPO on its scores, once for each coefficient and seed,
with the true score measured beside it and not learned from. Prints a table, and writes a page with the curves. Runs
that are there already go on from where they stand.
"""

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpost.delta import Both, Head, Lora
from jaxpost.evals import comparison, tradeoff
from jaxpost.faults import Fault
from jaxpost.recipes import ppo, reward, sft
from jaxpost.recipes.corpus import World
from jaxpost.train import metrics

JUDGE, GOLD = "judge", "gold"


def instructed(options: argparse.Namespace) -> sft.Config:
    """The model that everything starts from: it writes reviews of mixed quality."""
    return sft.Config(
        run=str(options.out / "sft"),
        model=sft.Pretrained("nano", dtype="float32"),
        delta=Lora(rank=16, alpha=16.0),
        data=World("reviews", "sft"),  # pyright: ignore[reportArgumentType]
        batches=sft.Batches(rows=16, seq_len=128),
        optim=sft.Optimiser(lr=3e-3, warmup=min(10, options.sft_steps // 4)),
        train=sft.Training(steps=options.sft_steps, eval_every=50, eval_batches=2, save_every=100),
        review=sft.Review(examples=0, generations=2),
    )


def judging(options: argparse.Namespace, start: str) -> reward.Config:
    """The weak reward model."""
    return reward.Config(
        run=str(options.out / "judge"),
        model=reward.Pretrained("nano", dtype="float32", adapter=start),
        delta=Both(Lora(rank=8, alpha=16.0), Head(1)),
        data=reward.World("reviews", "weak", size=options.pairs),
        batches=reward.Batches(rows=8, seq_len=256),
        optim=reward.Optimiser(lr=1e-3, warmup=min(10, options.judge_steps // 4)),
        train=reward.Training(steps=options.judge_steps, eval_every=20, eval_batches=4, save_every=100),
        review=reward.Review(examples=256, generations=0),
    )


def optimised(options: argparse.Namespace, start: str, judge: str, coefficient: float, seed: int) -> ppo.Config:
    """PPO on what the judge says. The true score has a weight of 0."""
    return ppo.Config(
        run=str(options.out / f"penalty {coefficient:g}, seed {seed}"),
        model=ppo.Pretrained("nano", dtype="float32", adapter=start),
        delta=Both(Lora(rank=16, alpha=16.0), Head(1)),
        data=ppo.World("reviews", "prompts"),
        rewards=(ppo.RewardModel(judge, name=JUDGE), ppo.Function("reviews_gold", weight=0.0, name=GOLD)),
        rollout=ppo.Rollout(
            prompts=options.prompts, samples=1, prompt_tokens=32, answer_tokens=options.answer_tokens, unended=-1.0
        ),
        penalty=ppo.Penalty(coefficient=coefficient),
        objective=ppo.Objective(whiten_rewards=False, critic_steps=2),
        epochs=2,
        minibatches=2,
        optim=ppo.Optimiser(lr=options.lr, schedule="constant", warmup=5),
        train=ppo.Training(
            steps=options.steps,
            seed=seed,
            eval_every=max(1, options.steps // options.points),
            eval_batches=max(1, options.held_out // options.prompts),
            save_every=options.steps,
        ),
        review=ppo.Review(examples=0, generations=2),
    )


def walked(config: ppo.Config) -> tradeoff.Path:
    found = tradeoff.path_of(Path(config.run).name, metrics.read(config.run), comparison.recorded(Path(config.run)))
    if found is None:
        raise Fault(f"{config.run} has no held-out rewards; give --steps at least three times --points")
    return found


def table(runs: dict[tuple[float, int], tradeoff.Path]) -> Iterator[str]:
    """Every run where the true score was highest and where it ended, then the means over seeds."""
    yield "| penalty | seed | start: judge | gold | best gold: step | KL | judge | gold | end: KL | judge | gold |"
    yield "|" + " --- |" * 11
    for (coefficient, seed), path in runs.items():
        yield line(f"{coefficient:g}", str(seed), [path])
    for coefficient in dict.fromkeys(coefficient for coefficient, _ in runs):
        yield line(f"{coefficient:g}", "mean", [path for (c, _), path in runs.items() if c == coefficient])


def line(coefficient: str, seed: str, paths: Sequence[tradeoff.Path]) -> str:
    moments = [[tradeoff.moment(path, at) for path in paths] for at in (0,)]
    moments += [[tradeoff.moment(path, path.best) for path in paths], [tradeoff.moment(path, -1) for path in paths]]
    start, best, end = ({name: mean(name, some) for name in (JUDGE, GOLD, "kl", "step")} for some in moments)
    cells = [coefficient, seed, f"{start[JUDGE]:.3f}", f"{start[GOLD]:.3f}", f"{best['step']:.0f}"]
    cells += [f"{one[name]:.3f}" for one in (best, end) for name in ("kl", JUDGE, GOLD)]
    return f"| {' | '.join(cells)} |"


def mean(name: str, moments: Sequence[tradeoff.Moment]) -> float:
    values: list[Any] = [getattr(one, name, None) if name in ("kl", "step") else one.rewards[name] for one in moments]
    return statistics.mean(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimise"))
    parser.add_argument("--coefficients", type=float, nargs="+", default=[0.0, 0.05, 0.2])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-3)
    for name, default, what in (
        ("steps", 60, "of PPO"),
        ("prompts", 32, "of a step"),
        ("answer-tokens", 80, "of an answer at most"),
        ("points", 12, "of every curve"),
        ("held-out", 64, "prompts of every point"),
        ("sft-steps", 200, "of instruction tuning"),
        ("judge-steps", 60, "of the reward model"),
        ("pairs", 0, "that the reward model learns from; 0: the world's own number, 400"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default {default})")
    options = parser.parse_args()
    # Runs differ in numbers that are arguments of their programs: what one has compiled, the others find.
    jax.config.update("jax_compilation_cache_dir", str(options.out.absolute() / "compiled"))
    start, runs = instructed(options), {}
    sft.main(start, Path(start.run))
    judge = judging(options, start.run)
    reward.main(judge, Path(judge.run))
    for coefficient in options.coefficients:
        for seed in range(options.seeds):
            config = optimised(options, start.run, judge.run, coefficient, seed)
            ppo.main(config, Path(config.run))
            runs[coefficient, seed] = config
    paths = {key: walked(config) for key, config in runs.items()}
    rated = json.loads((Path(judge.run) / "rewards.json").read_text(encoding="utf-8"))
    print(f"\nThe judge tells {rated['accuracy']:.1%} of {rated['pairs']} held-out pairs apart as its teacher does.\n")
    print("\n".join(table(paths)))
    if len(runs) > 1:
        print(f"\n{comparison.compare([Path(config.run) for config in runs.values()], options.out)}")


if __name__ == "__main__":
    main()
