# SPDX-License-Identifier: Apache-2.0
"""The verb that classifies."""

import tyro

from jaxpost.cli.terminal import escaped, say, status
from jaxpost.faults import Fault

Positional = tyro.conf.Positional


def classify(run: Positional[str], text: Positional[str], question: str = "", best: bool = False) -> None:
    """Tell the class of a text, or of each of its words, or what in it answers --question, by what a run learned."""
    from jaxpost.recipes import trained
    from jaxpost.recipes.labelling import label

    if not text.strip():
        raise Fault("the text is empty; give one, in quotes")
    with status(f"reading {run}"):
        model = trained.read(run, best)
    if question and getattr(model.config, "kind", "span") != "span":
        raise Fault(f"--question: {run} tells classes and finds no answers; leave it out, or train one of kind span")
    words = text.split()
    (said,) = label(model, [{"text": text, "tokens": words, "context": text, "question": question}])
    if len(said.answers) > 1:
        told = zip(words, said.answers, strict=True)
        say("  ".join(f"{escaped(word)} [bold]{escaped(name)}[/bold]" for word, name in told))
        return
    shares = sorted((share for each in said.shares for share in each.items()), key=lambda share: -share[1])
    say(
        "  ".join(
            [f"[bold]{escaped(' '.join(said.answers))}[/bold]", *(f"{escaped(n)} {100 * s:.1f} %" for n, s in shares)]
        )
    )
