# SPDX-License-Identifier: Apache-2.0
"""Verbs for what came of a run: its scores, its weights for others, its report."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from jaxpost.cli.terminal import escaped, say, status
from jaxpost.faults import Fault, nearest

Positional = tyro.conf.Positional


def evaluate(
    run: Positional[str],
    examples: int = 50,
    clusters: tuple[str, ...] = (),
    every_task: bool = False,
    best: bool = False,
) -> None:
    """Score a run's model beside its base: on the built-in tasks, what the run held out told apart, or, if it was
    trained on other data, by how well it predicts the held-out rows (as many as --examples)."""
    from jaxpost.evals import table
    from jaxpost.recipes import trained
    from jaxpost.recipes.corpus import Tasks
    from jaxpost.recipes.review import compared, measure, predictions, suites

    if examples < 1:
        raise Fault(f"--examples is {examples}; give at least 1 a task")
    known = {task.cluster for task in Tasks().all()}
    if unknown := [name for name in clusters if name not in known]:
        raise Fault(f"no cluster is named {unknown[0]!r}; {nearest(unknown[0], known)}")
    with status(f"reading {run}"):
        model = trained.read(run, best)
    corpus = Tasks() if model.config is None else model.config.data
    measured = {"the base": model.base} | ({"the tuned model": model.weights} if model.delta else {})
    console = Console(highlight=False)
    if not isinstance(corpus, Tasks):
        for name, weights in measured.items():
            with status(f"measuring {name}"):
                found = predictions(model.config, model.model, model.tokenizer, weights, examples)
            console.print(f"{name:<16} {found}")
        return
    parts = [p for p in suites(corpus.everything(), examples) if not clusters or p.task.cluster in clusters]
    scores = []
    for name, weights in measured.items():
        with status(f"measuring {name}"):
            found, notes = measure(parts, model.model, model.tokenizer, weights, 32)
        scores.append(found)
    console.print(table.render(table.Evaluation(compared(parts, scores[0], scores[-1]), tuple(notes)), every_task))


def export(
    run: Positional[str],
    out: Positional[Path],
    to: Literal["hf"] = "hf",
    dtype: str = "",
    best: bool = False,
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace the model that OUT holds.")] = False,
) -> None:
    """Write a run's model, its delta folded in, as a directory that transformers and others load."""
    from jaxpost.interop import hf
    from jaxpost.recipes import base, trained

    dtype = base.dtype_named(dtype, "--dtype")
    _check_out(out, run, overwrite)
    with status(f"reading {run}"):
        model = trained.read(run, best)
    with status(f"writing {out}"):
        hf.save(out, model.model, model.folded, dtype or model.model.dtype, model.tokenizer)
    say(escaped(f"{out} holds the merged model in {dtype or model.model.dtype} (merged in float32, then rounded once)"))


def _check_out(out: Path, run: str, overwrite: bool) -> None:
    """That nothing is lost by writing there. A run's record and the model under a delta never are replaced."""
    from jaxpost.recipes import base, record, trained

    model = trained.base_of(run)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if isinstance(model, base.Pretrained) and out.samefile(base.directory(model, weights=False)):
        what = (
            f"the model that {run} starts from, which its delta needs" if record.is_run(Path(run)) else "what is read"
        )
        raise Fault(f"{out} is {what}; write to another directory")
    if record.is_run(out):
        raise Fault(f"{out} is a run directory; write the model to another one")
    if not overwrite:
        raise Fault(f"{out} is there already; write to a new directory, or say --overwrite to replace the model in it")


def report(run: Positional[Path]) -> None:
    """Write RUN/report.html: curves, before and after, generations, config, in one page."""
    from jaxpost.evals.report import write_report

    print(write_report(run))
