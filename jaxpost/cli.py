# SPDX-License-Identifier: Apache-2.0
"""The command line: `jaxpost VERB ...`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from jaxpost.faults import Fault, nearest

Positional = tyro.conf.Positional


def train(arguments: list[str]) -> None:
    """CONFIG [--field value ...]: train what a config file (or the config of a run directory) says."""
    from jaxpost.recipes import configs
    from jaxpost.train.loop import Stopped

    name, rest = _config_name("train", arguments)
    config = configs.override(configs.load(name), rest, f"jaxpost train {name}")
    try:
        configs.recipe(config).main(config, Path(config.run))
    except Stopped as stopped:
        _say(f"[yellow]{stopped}; start the same command again to go on from there[/yellow]")
        sys.exit(stopped.code)


def data(arguments: list[str]) -> None:
    """show CONFIG [--field value ...]: print rendered examples with the trained tokens marked."""
    from jaxpost.data.show import show
    from jaxpost.recipes import base, configs

    if not arguments or arguments[0] != "show":
        raise Fault("jaxpost data knows one verb so far: jaxpost data show CONFIG")
    name, rest = _config_name("data show", arguments[1:])
    config = configs.override(configs.load(name), rest, f"jaxpost data show {name}")
    rows = config.data.training(config.train.seed)
    tokenizer, batches = base.tokenizer_of(config.model), config.batches
    console = Console(highlight=False)
    for shown in show(rows, tokenizer, 5, config.train.seed, batches.train_on, config.data.columns, batches.seq_len):
        console.print(shown, "")


def generate(
    run: Positional[str],
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(help="One or more prompts; - reads one from standard input.")],
    max_new: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    best: bool = False,
) -> None:
    """Print what a run's model (or a model directory's, or nano's) writes after each prompt."""
    from jaxpost.data.text import as_prompt
    from jaxpost.recipes import trained
    from jaxpost.recipes.review import prompt_ids
    from jaxpost.sample import Sampling
    from jaxpost.sample import generate as complete
    from jaxpost.sample.generate import stops_at
    from jaxpost.train.progress import status

    texts = [as_prompt(sys.stdin.read().rstrip("\n") if text == "-" else text) for text in prompt]
    with status(f"reading {run}"):
        model = trained.read(run, best)
    tokenizer = model.tokenizer
    with status("writing"):
        done = complete(
            model.model,
            model.weights,
            [prompt_ids(tokenizer, text) for text in texts],
            Sampling(max_new, temperature, top_k, top_p, seed),
            ends=(tokenizer.eos,),
            stop=stops_at(stop, tokenizer.decode) if stop else None,
        )
    for completion in done:
        print(tokenizer.decode(completion.tokens))


def chat(run: Positional[str], max_new: int = 128, temperature: float = 0.7, top_p: float = 0.95, seed: int = 0) -> None:
    """Talk with a run's model. An empty line or end of input ends it; /new forgets what was said."""
    from jaxpost.data.text import STOP, chat_prompt
    from jaxpost.recipes import trained
    from jaxpost.recipes.review import prompt_ids
    from jaxpost.sample import Sampling, stream
    from jaxpost.sample.generate import stops_at
    from jaxpost.train.progress import status

    with status(f"reading {run}"):
        model = trained.read(run)
    tokenizer, turns = model.tokenizer, []
    stop = stops_at((STOP,), tokenizer.decode)
    while line := _asked():
        if line == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": line})
        prompts = [prompt_ids(tokenizer, chat_prompt(turns))]
        sampling = Sampling(max_new, temperature, 0, top_p, seed + len(turns))
        written = ""
        for (completion,) in stream(model.model, model.weights, prompts, sampling, ends=(tokenizer.eos,), stop=stop):
            text = tokenizer.decode(completion.tokens)
            print(text[len(written) :], end="", flush=True)
            written = text
        print()
        turns.append({"role": "assistant", "content": written.strip()})


def evaluate(
    run: Positional[str], examples: int = 50, clusters: tuple[str, ...] = (), every_task: bool = False, best: bool = False
) -> None:
    """Score a run's model beside its base on the built-in tasks; a run's own held-out tasks are told apart."""
    from dataclasses import replace

    from jaxpost.evals import table
    from jaxpost.recipes import trained
    from jaxpost.recipes.corpus import Tasks
    from jaxpost.recipes.review import compared, measure, suites
    from jaxpost.train.progress import status

    with status(f"reading {run}"):
        model = trained.read(run, best)
    corpus = model.config.data if isinstance(getattr(model.config, "data", None), Tasks) else Tasks()
    parts = [p for p in suites(replace(corpus, only=()), examples) if not clusters or p.task.cluster in clusters]
    if not parts:
        raise Fault(f"no cluster is named {clusters[0]!r}; {nearest(clusters[0], {t.cluster for t in corpus.all()})}")
    scores = []
    for name, weights in (("the base", model.base), ("the tuned model", model.weights)):
        if weights is model.base or model.delta:
            with status(f"measuring {name}"):
                found, notes = measure(parts, model.model, model.tokenizer, weights, 32)
            scores.append(found)
    evaluation = table.Evaluation(compared(parts, scores[0], scores[-1]), tuple(notes))
    Console(highlight=False).print(table.render(evaluation, every_task))


def export(run: Positional[str], out: Positional[Path], to: Literal["hf"] = "hf", dtype: str = "", best: bool = False) -> None:
    """Write a run's model, its delta folded in, as a directory that transformers and others load."""
    from jaxpost.interop import hf
    from jaxpost.recipes import trained
    from jaxpost.train.progress import status

    with status(f"reading {run}"):
        model = trained.read(run, best)
    with status(f"writing {out}"):
        hf.save(out, model.model, model.folded, dtype or model.model.dtype, model.tokenizer)
    _say(f"{out} holds the merged model in {dtype or model.model.dtype} (rounded once, after merging in float32)")


def report(run: Positional[Path]) -> None:
    """Write RUN/report.html: curves, before and after, generations, config, in one page."""
    from jaxpost.evals.report import write_report

    _say(f"{write_report(run)}")


def list_configs(directory: Positional[Path] = Path("configs")) -> None:
    """List the configs of a directory, with what each is for."""
    from jaxpost.recipes import configs

    files = sorted(directory.glob("*.py"))
    if not files:
        raise Fault(f"{directory} holds no config files; run this in a checkout, or name a directory")
    for path in files:
        functions = configs.listed(path)
        purpose = (sys.modules[path.stem].__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        _say(f"[bold]{path}[/bold]  {', '.join(functions)}\n    {purpose}")


TYPED: dict[str, Callable[..., Any]] = {
    "generate": generate,
    "chat": chat,
    "eval": evaluate,
    "export": export,
    "report": report,
    "configs": list_configs,
}
FREE: dict[str, Callable[[list[str]], None]] = {"train": train, "data": data}
VERBS = {**FREE, **TYPED}


def main() -> None:
    """Entry point. A `Fault` is printed as one sentence with exit code 2; anything else is a bug and shows itself."""
    # A TPU host's libtpu and an accelerator-less machine both speak up while JAX looks for devices.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        _usage()
        sys.exit(0 if arguments else 2)
    try:
        verb, rest = arguments[0], arguments[1:]
        if verb == "--version":
            from jaxpost import __version__

            print(__version__)
        elif verb in FREE:
            FREE[verb](rest)
        elif verb in TYPED:
            tyro.cli(TYPED[verb], args=rest, prog=f"jaxpost {verb}")
        else:
            raise Fault(f"jaxpost has no verb {verb!r}; {nearest(verb, VERBS)}")
    except Fault as fault:
        Console(stderr=True).print(f"[red]jaxpost:[/red] {_escaped(str(fault))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _usage() -> None:
    print("jaxpost VERB ...\n")
    for verb, function in VERBS.items():
        print(f"  {verb:<9} {(function.__doc__ or '').splitlines()[0]}")
    print("\njaxpost VERB --help tells more.")


def _config_name(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise Fault(f"jaxpost {verb} needs a config: a file such as configs/flan_nano_lora.py, or a run directory")
    return arguments[0], arguments[1:]


def _asked() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _say(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
