# SPDX-License-Identifier: Apache-2.0
"""Verbs for what came of a run: its scores, its weights for others, its report."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from jaxpost.cli.terminal import escaped, say, status
from jaxpost.faults import Fault, nearest

Positional = tyro.conf.Positional
OVER = "Lay this adapter (a directory that PEFT or AdapterHub wrote) over the model."


def evaluate(
    run: Positional[str],
    examples: int = 50,
    clusters: tuple[str, ...] = (),
    every_task: bool = False,
    best: bool = False,
    adapter: Annotated[str, tyro.conf.arg(help=OVER)] = "",
) -> None:
    """Score a run's model beside its base: on the built-in tasks, what the run held out told apart, or, if it was
    trained on other data, by how well it predicts the held-out rows (as many as --examples)."""
    from jaxpost.data.tokenizers import Virtual, with_virtual
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
        model = trained.read(run, best, adapter)
    corpus = Tasks() if model.config is None else model.config.data
    plain = with_virtual(model.tokenizer, Virtual())  # the base knows no learned prompt
    measured = {"the base": (model.base, plain)}
    measured |= {"the tuned model": (model.weights, model.tokenizer)} if model.delta else {}
    console = Console(highlight=False)
    if not isinstance(corpus, Tasks):
        for name, (weights, tokenizer) in measured.items():
            with status(f"measuring {name}"):
                found = predictions(model.config, model.model, tokenizer, weights, examples)
            console.print(f"{name:<16} {found}")
        return
    parts = [p for p in suites(corpus.everything(), examples) if not clusters or p.task.cluster in clusters]
    scores = []
    for name, (weights, tokenizer) in measured.items():
        with status(f"measuring {name}"):
            found, notes = measure(parts, model.model, tokenizer, weights, 32)
        scores.append(found)
    console.print(table.render(table.Evaluation(compared(parts, scores[0], scores[-1]), tuple(notes)), every_task))


def export(
    run: Positional[str],
    out: Positional[Path],
    to: Literal["hf", "peft", "adapterhub"] = "hf",
    dtype: str = "",
    best: bool = False,
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace the model or adapter that OUT holds.")] = False,
) -> None:
    """Write a run's model for others: its delta folded in, as a model directory (--to hf) that transformers and others
    load; or the delta alone, as an adapter for PEFT (--to peft) or AdapterHub (--to adapterhub)."""
    from jaxpost.recipes import base, trained

    dtype = base.dtype_named(dtype, "--dtype")
    if dtype and to != "hf":
        raise Fault(f"--dtype {dtype} is of a model directory; an adapter is written in float32, leave it out")
    _check_out(out, run, overwrite)
    with status(f"reading {run}"):
        model = trained.read(run, best)
    with status(f"writing {out}"):
        told = _write_model(out, run, model, dtype) if to == "hf" else _write_adapter(out, run, model, to)
    say(escaped(told))


def _write_model(out: Path, run: str, model: Any, dtype: str) -> str:
    from jaxpost.interop import hf

    _check_foldable(run, model)
    hf.save(out, model.model, model.folded, dtype or model.model.dtype, model.tokenizer)
    return f"{out} holds the merged model in {dtype or model.model.dtype} (merged in float32, then rounded once)"


def _check_foldable(run: str, model: Any) -> None:
    """That a model directory has a place for all that was learned."""
    from jaxpost.delta import spread
    from jaxpost.delta.contract import fills

    # What stands in a slot of its own is no part of any model there; biases are.
    placed = [path for path, edit in spread(model.delta).items() if fills(edit) and not path.endswith("_bias")]
    if placed:
        if heads := [path for path in placed if path.startswith("heads/")]:
            raise Fault(f"{run} has learned classes ({heads[0]}), and no format that is written here has a place for "
                        "them; ask the run itself, with jaxpost classify")  # fmt: skip
        to = "adapterhub" if placed[0].endswith("/adapter") else "peft"
        raise Fault(f"{run} fills {placed[0]}, which a model directory has no place for; write it with --to {to}")


def _write_adapter(out: Path, run: str, model: Any, to: str) -> str:
    from jaxpost.interop import adapterhub, peft
    from jaxpost.recipes import base, trained

    start = trained.base_of(run)
    if not model.delta:
        raise Fault(f"{run} is a model and no run, so there is no adapter to write; it takes --to hf alone")
    if model.tokenizer.virtual.between:
        raise Fault(
            f"{run} learned a prompt between prompt and answer, and in adapters of others it stands before both"
        )
    name = start.path if isinstance(start, base.Pretrained) else ""
    plain, delta = model.apart
    if to == "peft":
        peft.save(out, model.model, delta, name, plain)
    else:
        adapterhub.save(out, model.model, delta, name)
    return f"{out} holds the adapter, which is one over {name or 'the model that was drawn for the run'}"


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
        raise Fault(f"{out} is there already; write to a new directory, or say --overwrite to replace what it holds")


def report(
    run: Positional[Path],
    others: Positional[tuple[Path, ...]] = (),
    out: Annotated[Path | None, tyro.conf.arg(help="Where to write the page: a file, or a directory.")] = None,
) -> None:
    """Write RUN/report.html: curves, before and after, generations, config, in one page. With OTHERS, runs side by side
    instead: RUN/comparison.html."""
    from jaxpost.evals import comparison
    from jaxpost.evals.report import FILE, write_report

    if others:
        print(comparison.compare((run, *others), out))
    else:
        print(write_report(run, comparison.place(out, run, FILE) if out else None))
