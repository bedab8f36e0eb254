# SPDX-License-Identifier: Apache-2.0
"""The command line: `jaxpost VERB ...`. What a verb makes goes to standard output, what it does meanwhile to standard
error; `train`, which is watched, says everything on standard output."""

import codecs
import functools
import inspect
import io
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, redirect_stderr
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.padding import Padding

from jaxpost.faults import Fault, nearest

Positional = tyro.conf.Positional


def train(arguments: list[str]) -> None:
    """CONFIG [--field value ...]: train what a config file (or the config of a run directory) says."""
    from jaxpost.recipes import configs, flags
    from jaxpost.train.loop import Stopped

    name, rest = _config_name("train", arguments)
    config = flags.override(configs.load(name), rest, f"jaxpost train {name}")
    try:
        configs.recipe(config).main(config, Path(config.run))
    except Stopped as stopped:
        _say(f"[yellow]{stopped}; start the same command again to go on from there[/yellow]")
        sys.exit(stopped.code)


def data(arguments: list[str]) -> None:
    """show CONFIG [--field value ...]: print rendered examples with the trained tokens marked."""
    from jaxpost.data.show import show
    from jaxpost.recipes import base, configs, flags

    if not arguments or arguments[0] != "show":
        raise Fault("jaxpost data knows one verb so far: jaxpost data show CONFIG")
    name, rest = _config_name("data show", arguments[1:])
    config = flags.override(configs.load(name), rest, f"jaxpost data show {name}")
    rows = config.data.training(config.train.seed)
    tokenizer, batches = base.tokenizer_of(config.model), config.batches
    console = Console(highlight=False)
    for shown in show(rows, tokenizer, 5, config.train.seed, batches.train_on, config.data.columns, batches.seq_len):
        console.print(shown, end="\n\n", soft_wrap=True)


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

    texts = [as_prompt(_text(_standard_input() if text == "-" else text)) for text in prompt]
    sampling = Sampling(max_new, temperature, top_k, top_p, seed)
    stop = tuple(string for string in stop if string)
    with _status(f"reading {run}"):
        model = trained.read(run, best)
    tokenizer = model.tokenizer
    with _status("writing"):
        done = complete(
            model.model,
            model.weights,
            [prompt_ids(tokenizer, text) for text in texts],
            sampling,
            ends=(tokenizer.eos,),
            stop=stops_at(stop, tokenizer.decode) if stop else None,
        )
    for completion in done:
        print(tokenizer.decode(completion.tokens))


def chat(
    run: Positional[str], max_new: int = 128, temperature: float = 0.7, top_p: float = 0.95, seed: int = 0
) -> None:
    """Talk with a run's model. An empty line or end of input ends it; /new forgets what was said."""
    from dataclasses import replace

    from jaxpost.data.text import STOP, chat_prompt
    from jaxpost.recipes import trained
    from jaxpost.recipes.review import prompt_ids
    from jaxpost.sample import Sampling, stream
    from jaxpost.sample.generate import stops_at

    with _status(f"reading {run}"):
        model = trained.read(run)
    tokenizer, turns, said = model.tokenizer, [], 0
    sampling = Sampling(max_new, temperature, 0, top_p)
    stop = stops_at((STOP,), tokenizer.decode)
    room = model.model.max_length - max_new
    while line := _asked():
        if line == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": line})
        said += 1
        while len(prompt := prompt_ids(tokenizer, chat_prompt(turns))) > room and len(turns) > 1:
            turns = turns[2:]  # what was said first no longer fits and is forgotten
        if len(prompt) > room:
            turns = []
            _say(f"[yellow](that is {len(prompt)} tokens, and the model has room for {room}: say it shorter)[/yellow]")
            continue
        written, drawn = "", replace(sampling, seed=seed + said)
        for (completion,) in stream(model.model, model.weights, [prompt], drawn, ends=(tokenizer.eos,), stop=stop):
            text = tokenizer.decode(completion.tokens)
            print(text[len(written) :], end="", flush=True)
            written = text
        print()
        turns.append({"role": "assistant", "content": written.strip()})


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
    with _status(f"reading {run}"):
        model = trained.read(run, best)
    corpus = Tasks() if model.config is None else model.config.data
    measured = {"the base": model.base} | ({"the tuned model": model.weights} if model.delta else {})
    console = Console(highlight=False)
    if not isinstance(corpus, Tasks):
        for name, weights in measured.items():
            with _status(f"measuring {name}"):
                found = predictions(model.config, model.model, model.tokenizer, weights, examples)
            console.print(f"{name:<16} {found}")
        return
    parts = [p for p in suites(corpus.everything(), examples) if not clusters or p.task.cluster in clusters]
    scores = []
    for name, weights in measured.items():
        with _status(f"measuring {name}"):
            found, notes = measure(parts, model.model, model.tokenizer, weights, 32)
        scores.append(found)
    console.print(table.render(table.Evaluation(compared(parts, scores[0], scores[-1]), tuple(notes)), every_task))


def export(
    run: Positional[str], out: Positional[Path], to: Literal["hf"] = "hf", dtype: str = "", best: bool = False
) -> None:
    """Write a run's model, its delta folded in, as a directory that transformers and others load."""
    from jaxpost.interop import hf
    from jaxpost.recipes import trained

    with _status(f"reading {run}"):
        model = trained.read(run, best)
    with _status(f"writing {out}"):
        hf.save(out, model.model, model.folded, dtype or model.model.dtype, model.tokenizer)
    _say(
        _escaped(f"{out} holds the merged model in {dtype or model.model.dtype} (merged in float32, then rounded once)")
    )


def report(run: Positional[Path]) -> None:
    """Write RUN/report.html: curves, before and after, generations, config, in one page."""
    from jaxpost.evals.report import write_report

    print(write_report(run))


def list_configs(directory: Positional[Path] = Path("configs")) -> None:
    """List the configs of a directory, with what each is for."""
    from jaxpost.recipes import configs

    found = {path: configs.listed(path) for path in sorted(directory.glob("*.py"))}
    if not any(names for _, names in found.values()):
        raise Fault(f"{directory} holds no config files; run this in a checkout, or name a directory")
    for path, (purpose, names) in found.items():
        if names:
            _say(f"[bold]{_escaped(str(path))}[/bold]  {', '.join(names)}")
            Console(highlight=False).print(Padding(_escaped(purpose), (0, 0, 0, 4)))


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
    _open_streams()
    try:
        _run(sys.argv[1:])
    except Fault as fault:
        _complain(str(fault))
    except BrokenPipeError:  # whoever read our output has seen enough (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not (said := _surroundings(error)):
            raise
        _complain(said)


def _run(arguments: list[str]) -> None:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if not verb or verb in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if verb else sys.stderr)
        sys.exit(0 if verb else 2)
    if verb == "--version":
        from jaxpost import __version__

        print(__version__)
    elif verb in FREE and rest[-1:] in (["-h"], ["--help"]) and all(word in ("show", *rest[-1:]) for word in rest):
        print(f"jaxpost {verb} {FREE[verb].__doc__}\n\njaxpost {verb} ... CONFIG --help lists the fields of a config.")
    elif verb in FREE:
        FREE[verb](rest)
    elif verb in TYPED:
        _read(TYPED[verb], rest, f"jaxpost {verb}")()
    else:
        raise Fault(f"jaxpost has no verb {verb!r}; {nearest(verb, VERBS)}")


def _read(function: Callable[..., Any], arguments: list[str], command: str) -> Callable[[], Any]:
    """The call that the arguments ask for. What is wrong with them is said in a sentence."""

    @functools.wraps(function)
    def bound(*positional: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *positional, **named)

    verb = command.removeprefix("jaxpost ")
    known = {f"--{name.replace('_', '-')}" for name in (*inspect.signature(function).parameters, "help")}
    flags = [word.partition("=")[0].replace("_", "-") for word in arguments if word.startswith("--")]
    if unknown := [flag for flag in flags if flag.replace("--no-", "--") not in known]:
        raise Fault(f"{verb}: no flag {unknown[0]}; {nearest(unknown[0], known)}")
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            return tyro.cli(bound, args=arguments, prog=command)
    except SystemExit as error:
        if not error.code:
            raise
        # The first part of a box of lines: what is missing or wrong. The rest repeats the help.
        rows = [row for line in box.getvalue().splitlines()[1:] if (row := line.strip("│╰╯|+ "))]
        rows = itertools.dropwhile(lambda row: not row.strip("─-"), rows)
        told = " ".join(itertools.takewhile(lambda row: row.strip("─-"), rows))
        told = told.replace(f"Missing from {command}:", "missing:").removesuffix(".")
        raise Fault(f"{verb}: {told or 'the arguments make no sense'}; {command} --help tells more") from error


def _usage() -> str:
    verbs = [f"  {verb:<9} {(function.__doc__ or '').splitlines()[0]}" for verb, function in VERBS.items()]
    return "\n".join(
        ["jaxpost VERB ...\n", *verbs, "\njaxpost VERB --help tells more, jaxpost --version which this is."]
    )


def _surroundings(error: Exception) -> str:
    """What the machine, not the program, did wrong; nothing for what is a bug."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" in text:
        return (
            "the device is out of memory; lower batches.rows or batches.seq_len, raise train.microbatches, or choose "
            f"train.remat most or full ({text.splitlines()[0][:200]})"
        )
    if text.startswith("Unable to initialize backend"):
        return f"JAX finds no device: {text.splitlines()[0]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return ""


def _config_name(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise Fault(f"jaxpost {verb} needs a config: a file such as configs/flan_nano_lora.py, or a run directory")
    return arguments[0], arguments[1:]


def _asked() -> str:
    """What the user says next; of piped input, without the mark that asks for it."""
    try:
        return _text(input("> " if sys.stdin.isatty() else "").strip())
    except EOFError:
        return ""
    except UnicodeDecodeError as error:
        raise Fault(f"standard input is not {error.encoding}") from error


def _standard_input() -> str:
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise Fault(f"standard input is not {error.encoding}") from error


def _text(given: str) -> str:
    """As it is, if it is text: bytes that are none come in disguise, and no tokenizer takes them."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise Fault(f"what was given is not UTF-8 (character {error.start + 1})") from error
    return given


PLAIN = str.maketrans({"⟦": "[[", "⟧": "]]", "…": "...", "−": "-", "–": "-", "±": "+-", "·": "-", "━": "-", "╸": "-"})


def _open_streams() -> None:
    """Standard streams that can be written to and read from, whatever the caller closed and whatever it can show."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open as long as the process runs)

    def plain(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end].translate(PLAIN)
        return text.encode("ascii", "replace").decode("ascii"), error.end

    codecs.register_error("jaxpost.plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="jaxpost.plain")  # pyright: ignore[reportAttributeAccessIssue]


def _status(message: str) -> AbstractContextManager[None]:
    from jaxpost.train.progress import status

    return status(message, Console(stderr=True))


def _complain(text: str) -> None:
    Console(stderr=True).print(f"[red]jaxpost:[/red] {_escaped(text)}", highlight=False, soft_wrap=True)
    sys.exit(2)


def _say(text: str) -> None:
    Console(highlight=False).print(text, soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    main()
