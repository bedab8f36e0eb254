# SPDX-License-Identifier: Apache-2.0
"""Verbs in which a model writes: completions of prompts, and a conversation."""

from typing import Annotated, Literal

import tyro

from jaxpost.cli.results import OVER
from jaxpost.cli.terminal import as_text, asked, say, standard_input, status
from jaxpost.faults import Fault

Positional = tyro.conf.Positional


def generate(
    run: Positional[str],
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(help="One or more prompts; - reads one from standard input.")],
    max_new: int = 64,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
    kv: Literal["model", "int8", "fp8"] = "model",
    best: bool = False,
    adapter: Annotated[str, tyro.conf.arg(help=OVER)] = "",
    chat: Annotated[bool, tyro.conf.arg(help="Word each prompt by the chat template, as a user's message.")] = False,
) -> None:
    """Print what a run's model (or a model directory's, or nano's) writes after each prompt (--chat: answers)."""
    from jaxpost.data.text import as_prompt
    from jaxpost.data.tokenizers import prompt_ids
    from jaxpost.recipes import trained
    from jaxpost.sample import Sampling
    from jaxpost.sample import generate as complete
    from jaxpost.sample.generate import stops_at

    if not prompt:
        raise Fault("--prompt names no prompt; give at least one, or - to read one from standard input")
    texts = [as_text(standard_input() if text == "-" else text) for text in prompt]
    sampling = Sampling(max_new, temperature, top_k, top_p, seed, kv)
    stop = tuple(string for string in stop if string)
    with status(f"reading {run}"):
        model = trained.read(run, best, adapter)
    tokenizer = model.tokenizer
    if chat:
        template = tokenizer.template
        texts = [template.prompt([{"role": "user", "content": text}], where="the prompt") for text in texts]
        stop += template.stops
    else:
        texts = [as_prompt(text) for text in texts]
    with status("writing"):
        done = complete(
            model.model,
            model.weights,
            [prompt_ids(tokenizer, text) for text in texts],
            sampling,
            ends=tokenizer.ends,
            stop=stops_at(stop, tokenizer.decode) if stop else None,
        )
    for completion in done:
        print(tokenizer.decode(completion.tokens))


def chat(
    run: Positional[str],
    max_new: int = 128,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    kv: Literal["model", "int8", "fp8"] = "model",
    adapter: Annotated[str, tyro.conf.arg(help=OVER)] = "",
) -> None:
    """Talk with a run's model. An empty line or end of input ends it; /new forgets what was said."""
    from dataclasses import replace

    from jaxpost.data.tokenizers import prompt_ids
    from jaxpost.recipes import trained
    from jaxpost.sample import Sampling, stream
    from jaxpost.sample.generate import stops_at

    with status(f"reading {run}"):
        model = trained.read(run, over=adapter)
    tokenizer, turns, said = model.tokenizer, [], 0
    sampling = Sampling(max_new, temperature, 0, top_p, kv=kv)
    template = tokenizer.template
    stop = stops_at(template.stops, tokenizer.decode) if template.stops else None
    room = model.model.max_length - max_new
    while line := asked():
        if line == "/new":
            turns = []
            continue
        turns.append({"role": "user", "content": line})
        said += 1
        while len(prompt := prompt_ids(tokenizer, template.prompt(turns))) > room and len(turns) > 1:
            turns = turns[2:]  # what was said first no longer fits and is forgotten
        if len(prompt) > room:
            turns = []
            say(f"[yellow](that is {len(prompt)} tokens, and the model has room for {room}: say it shorter)[/yellow]")
            continue
        written, drawn = "", replace(sampling, seed=seed + said)
        for (completion,) in stream(model.model, model.weights, [prompt], drawn, ends=tokenizer.ends, stop=stop):
            text = tokenizer.decode(completion.tokens)
            print(text[len(written) :], end="", flush=True)
            written = text
        print()
        turns.append({"role": "assistant", "content": written.strip()})
