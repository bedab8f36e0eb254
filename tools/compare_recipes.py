# SPDX-License-Identifier: Apache-2.0
"""What learning from preferences and rewards does for the built-in model, each recipe against where it started.

    python tools/compare_recipes.py --seeds 3 --jobs 2 --out runs/recipes

Reviews, of which a gold score is known, and tasks, whose answers are right or wrong. For every seed: instruction
tuning (the start), a reward model of preferences with labels of which one in ten is wrong, then DPO, SimPO and KTO on
preferences, PPO on the reward model, PPO and GRPO on the gold score, and GRPO on right answers. Prints one line a run
and a table of means over seeds, with half the range. Runs go on from where they stand; what they say is in their
`log.txt`.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxpost
from jaxpost.recipes import configs as files
from jaxpost.recipes import grpo, ppo
from jaxpost.train import metrics

CONFIGS = Path(jaxpost.__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Job:
    """A run, and those that must be there before it."""

    name: str
    config: Any
    needs: tuple[str, ...] = ()


def jobs(seed: int, out: Path, scale: float) -> list[Job]:
    """Everything for one seed, in an order in which nothing waits for what comes later."""

    def made(name: str, file: str, adapter: str = "", **changes: Any) -> Job:
        config = files.load(f"{CONFIGS}/{file}")
        model = replace(config.model, adapter=str(out / f"{adapter}-{seed}") if adapter else "")
        steps = max(2, round(scale * config.train.steps))
        train = replace(config.train, seed=seed, steps=steps, eval_every=max(1, steps // 3), save_every=steps)
        optim = replace(config.optim, warmup=min(config.optim.warmup, steps // 4))
        run = str(out / f"{name}-{seed}")
        config = replace(config, run=run, model=model, train=train, optim=optim, **changes)
        return Job(name, config, (adapter,) if adapter else ())

    judge = ppo.RewardModel(str(out / f"reward-{seed}"), name="judge")
    watched = ppo.Function("reviews_gold", weight=0.0, name="gold")
    gold = (grpo.Function("reviews_gold", name="gold"),)
    reviews = grpo.Rollout(prompts=16, samples=8, prompt_tokens=48, answer_tokens=80, unended=-0.5)
    by_judge = made("ppo, reward model", "ppo_nano.py", "start", rewards=(judge, watched))
    return [
        made("start", "dpo_nano.py:start"),
        made("tasks", "flan_nano_lora.py"),
        made("reward", "reward_nano.py", "start"),
        made("dpo", "dpo_nano.py", "start"),
        made("simpo", "dpo_nano.py:simpo", "start"),
        made("kto", "kto_nano.py", "start"),
        made("ppo, gold", "ppo_nano.py:gold", "start"),
        made(
            "grpo, gold", "grpo_nano.py", "start", data=grpo.World("reviews", "prompts"), rewards=gold, rollout=reviews
        ),
        made("grpo, tasks", "grpo_nano.py", "tasks"),
        replace(by_judge, needs=("start", "reward")),
    ]


def run(job: Job) -> None:
    """In a process of its own, so that several share a machine."""
    directory = Path(job.config.run)
    directory.mkdir(parents=True, exist_ok=True)
    recipe = sys.modules[type(job.config).__module__]
    with (directory / "log.txt").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        recipe.main(job.config, directory)


def told(job: Job) -> dict[str, tuple[float, float]]:
    """What a run measured of held-out rows before its first step and after its last, by name."""
    directory = Path(job.config.run)
    lines = [line for line in metrics.read(directory) if any(name.startswith("eval_") for name in line)]
    found = {}
    for name, (_, _, _, _, score) in _reviewed(directory, "after").items():
        found[name] = (_reviewed(directory, "before")[name][-1], score)
    shown = ("eval_accuracy", "eval_reward", "eval_reward/gold", "eval_reward/judge", "eval_reward/exact", "eval_kl")
    for name in shown:
        if lines and name in lines[0] and name in lines[-1]:
            found[name.removeprefix("eval_")] = (lines[0][name], lines[-1][name])
    return found


def _reviewed(directory: Path, when: str) -> Mapping[str, Any]:
    path = directory / "preferences.json"
    return json.loads(path.read_text(encoding="utf-8"))[when] if path.is_file() else {}


def table(found: Mapping[str, list[dict[str, tuple[float, float]]]]) -> Iterator[str]:
    yield "| recipe | measure | before | after | seeds |"
    yield "|---|---|---|---|---|"
    for name, runs in found.items():
        for measure in runs[0]:
            cells = [_spread([each[measure][i] for each in runs if measure in each]) for i in (0, 1)]
            yield f"| {name} | {measure} | {cells[0]} | {cells[1]} | {len(runs)} |"


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--scale", type=float, default=1.0, help="of the steps of every run")
    parser.add_argument("--only", nargs="*", default=[], help="these, and what they need")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    every = [job for seed in range(options.seeds) for job in jobs(seed, options.out, options.scale)]
    needed = {*options.only, *(need for job in every if job.name in options.only for need in job.needs)}
    every = [job for job in every if not options.only or job.name in needed]
    spawn, begun = multiprocessing.get_context("spawn"), time.monotonic()
    done: dict[str, bool] = {}

    def work(job: Job) -> None:
        seed = job.config.train.seed
        while not all(f"{need}-{seed}" in done for need in job.needs):
            time.sleep(0.2)
        good = all(done[f"{need}-{seed}"] for need in job.needs)
        if good:
            process = spawn.Process(target=run, args=(job,))
            process.start()
            process.join()
            good = process.exitcode == 0
        done[f"{job.name}-{seed}"] = good
        said = {name: f"{a:.3f} -> {b:.3f}" for name, (a, b) in told(job).items()} if good else "failed"
        print(f"{time.monotonic() - begun:6.0f} s  {job.name}, seed {seed}: {said}", flush=True)

    # What others wait for comes first: with fewer workers than jobs, none may wait for one that has not begun.
    order = sorted(every, key=lambda job: (len(job.needs), job.config.train.seed))
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(work, order))
    found: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for job in every:
        if done[f"{job.name}-{job.config.train.seed}"] and (measures := told(job)):
            found.setdefault(job.name, []).append(measures)
    print("\n" + "\n".join(table(found)))


if __name__ == "__main__":
    main()
