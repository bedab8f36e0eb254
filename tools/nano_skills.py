# SPDX-License-Identifier: Apache-2.0
"""What the nano base model has learned to write: cloze questions from text that it never saw, by kind.

    python tools/nano_skills.py [MODEL_DIR] [--each 60]

A sentence of a held-out document is given up to where its content is determined; the model continues greedily, and is
right if it writes what stood there. One line a skill, as a Markdown table row.
"""

import argparse
import re

import jax

from jaxpost.data.nano import Documents
from jaxpost.data.tokenizers import prompt_ids
from jaxpost.recipes import trained
from jaxpost.recipes.base import Pretrained
from jaxpost.sample import Sampling, generate
from jaxpost.shard import MeshShape, make_mesh

# The answer is the last group, and follows from what stands before it.
SKILLS = {
    "addition of numbers below 100": r"\d+ plus \d+ is (\d+)|The result of \d+ \+ \d+ is (\d+)",
    "subtraction": r"The result of \d+ - \d+ is (\d+)",
    "sorting two to four numbers": r"sorted from the smallest to the largest: ([\d, ]+)",
    "sorting words": r"(?:\w+, )+\w+ sorted: ([a-z, ]+)",
    "reversing a list": r"had to reverse [a-z, ]+ and wrote ([a-z, ]+)",
    "spelling": r"\w+ is spelled ((?:\w )+\w)",
    "spelling backwards": r"had to spell \w+ backwards and wrote ((?:\w )+\w)",
    "opposites": r"The opposite of \w+ is (\w+)",
    "kinds of things": r"\w+ is a word of the kind ([a-z ]+)",
    "sizes": r"Of the \w+ and the \w+, the (\w+) is smaller",
    "who has a thing in a story": r"So (\w+) had the",
}


def questions(each: int) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {skill: [] for skill in SKILLS}
    for text in map(Documents("test", 6000).__getitem__, range(6000)):
        for skill, pattern in SKILLS.items():
            for match in re.finditer(pattern, text):
                if len(found[skill]) < each:
                    group = match.lastindex or 0
                    found[skill].append((text[: match.start(group)], match.group(group)))
        if all(len(items) == each for items in found.values()):
            break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--each", type=int, default=60)
    options = parser.parse_args()
    mesh = make_mesh(MeshShape())
    with jax.set_mesh(mesh):
        model = trained.load(Pretrained(options.model, dtype="float32"), mesh)
    print("| skill | right | of |\n|---|---|---|")
    for skill, items in questions(options.each).items():
        # A prompt must not end in a space: the tokenizer joins it to the next word.
        prompts = [prompt_ids(model.tokenizer, prompt.rstrip(" "))[-256:] for prompt, _ in items]
        done = generate(model.config, model.weights, prompts, Sampling(max_new=32))
        right = 0
        for completion, (_, answer) in zip(done, items, strict=True):
            written = model.tokenizer.decode(completion.tokens).strip()
            right += re.match(re.escape(answer) + r"(?!\w)", written) is not None
        print(f"| {skill} | {right} | {len(items)} |", flush=True)


if __name__ == "__main__":
    main()
