# SPDX-License-Identifier: Apache-2.0
"""The nano world as tokens: trains its SentencePiece tokenizer, then writes generated text as a matrix of token ids.

    python tools/nano_tokens.py OUT [--documents 500000] [--width 513] [--vocabulary 2048]

OUT/tokenizer.model is made from the first 20,000 documents and the wordings of the tasks' templates (their words
occur in the text too; this only makes them whole pieces), OUT/tokens.npy from all documents, on all cores.
"""

import argparse
import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import sentencepiece

from jaxpost.data import nano
from jaxpost.data.tokenizers import SentencePieceTokenizer
from jaxpost.data.tokens import blocks


def train_tokenizer(out: Path, vocabulary: int) -> None:
    documents = nano.Documents("train", 20_000)
    text = itertools.chain.from_iterable(documents[i].split("\n") for i in range(len(documents)))
    wordings = (t.prompt for task in nano.TASKS.values() for t in task.templates)
    lines = itertools.chain(text, itertools.chain.from_iterable(w.split("\n") for w in wordings))
    with open(out / "tokenizer.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for line in lines if line.strip()),
            model_writer=model,
            vocab_size=vocabulary,
            model_type="unigram",
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            split_digits=True,
            user_defined_symbols=["\n"],
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            minloglevel=2,
        )


def tokens(job: tuple[str, int, int, int, int]) -> np.ndarray:
    model, size, start, stop, width = job
    documents = nano.Documents("train", size)
    return blocks(({"text": documents[i]} for i in range(start, stop)), SentencePieceTokenizer.load(model), width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--documents", type=int, default=500_000)
    parser.add_argument("--width", type=int, default=513)
    parser.add_argument("--vocabulary", type=int, default=2048)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if not (options.out / "tokenizer.model").exists():
        train_tokenizer(options.out, options.vocabulary)
        print(f"tokenizer: {time.monotonic() - begun:.0f} s", flush=True)
    model, count, step = str(options.out / "tokenizer.model"), options.documents, 2_000
    jobs = [(model, count, start, min(count, start + step), options.width) for start in range(0, count, step)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        parts = []
        for part in pool.map(tokens, jobs):
            parts.append(part)
            done = sum(map(len, parts)) * (options.width - 1)
            print(
                f"\r{len(parts)}/{len(jobs)} parts, {done:,} tokens, {time.monotonic() - begun:.0f} s",
                end="",
                flush=True,
            )
    print()
    np.save(options.out / "tokens.npy", np.concatenate(parts))


if __name__ == "__main__":
    main()
