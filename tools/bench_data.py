# SPDX-License-Identifier: Apache-2.0
"""How fast rows of a JSONL file become batches: read, worded by a chat template, tokenised and packed.

    python tools/bench_data.py --cores 2
    python tools/bench_data.py --data rows.jsonl --tokenizer MODEL_DIR

Without --data, dialogues of made-up words are written to a temporary file, and without --tokenizer a byte-level BPE is
trained on them, with a chat template of the usual form. One JSON line a way: tokens a second (medians of --repeats
epochs) as read, tokenised into the cache, and out of it; which share of its time a loop waits that trains as fast as
--pace says; and where the time of the first way goes, stage by stage.
"""

import argparse
import cProfile
import json
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxpost.data.batches.loader import Loader, Single, read
from jaxpost.data.batches.packing import Group
from jaxpost.data.batches.prefetch import Prefetch
from jaxpost.data.prepare import cache
from jaxpost.data.sources import jsonl
from jaxpost.data.tokenizers import Tokenizer, load
from jaxpost.train.waiting import Waiting

STEPS = 30  # of the loop that may wait
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def lexicon(rng: np.random.Generator, count: int) -> list[str]:
    """Words of one to four syllables."""
    heads, vowels, tails = "b c d f g h l m n p r s t v st tr".split(), "aeiou", ["", "", "n", "r", "s", "l"]
    return sorted(
        {
            "".join(rng.choice(heads) + rng.choice(list(vowels)) + rng.choice(tails) for _ in range(rng.integers(1, 5)))
            for _ in range(count)
        }
    )


def dialogues(count: int) -> list[dict[str, Any]]:
    """Two to six turns of made-up sentences, words as frequent as Zipf says."""
    rng = np.random.default_rng(0)
    words = np.array(lexicon(rng, 20_000))
    rng.shuffle(words)
    shares = 1 / np.arange(10, len(words) + 10)
    shares /= shares.sum()

    def sentences(some: int) -> str:
        sizes = rng.integers(4, 18, some)
        drawn = rng.choice(words, sizes.sum(), p=shares)
        cut = np.split(drawn, np.cumsum(sizes)[:-1])
        return " ".join(" ".join(part).capitalize() + str(rng.choice(list(".?!"))) for part in cut)

    rows = []
    for _ in range(count):
        turns = []
        for _ in range(int(rng.integers(1, 4))):
            turns.append({"role": "user", "content": sentences(int(rng.integers(1, 4)))})
            turns.append({"role": "assistant", "content": sentences(int(rng.integers(2, 12)))})
        rows.append({"messages": turns})
    return rows


def trained(directory: Path, rows: Sequence[dict[str, Any]], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of the rows' own text, in a directory as models have it."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((turn["content"] for row in rows for turn in row["messages"]), trainer)
    inner.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load(directory)


def epoch(rows: Sequence[Any], tokenizer: Tokenizer, options: argparse.Namespace) -> tuple[int, float]:
    """Tokens laid into rows in one pass, and how full these were."""
    loader = Loader(rows, tokenizer, options.batch, options.seq, "pack", epochs=1)
    with suppress(StopIteration):
        while True:
            loader.next()
    return loader.counts().tokens, loader.counts().fill


def waited(rows: Sequence[Any], tokenizer: Tokenizer, options: argparse.Namespace) -> float:
    """The share of its time that a loop waits for data whose steps take as long as `pace` tokens a second do."""
    source, waiting = Prefetch(Loader(rows, tokenizer, options.batch, options.seq, "pack")), Waiting()
    with closing(source):
        for _ in range(STEPS):
            batch = waiting.next(source, None)
            time.sleep(int((batch["segments"] > 0).sum()) / options.pace)
    return waiting.share or 0.0


def stages(rows: Sequence[Any], tokenizer: Tokenizer) -> dict[str, float]:
    """Seconds of each stage by itself, over all rows."""

    def seconds(act: Callable[[], Any]) -> tuple[float, Any]:
        begun = time.perf_counter()
        made = act()
        return time.perf_counter() - begun, made

    reading, found = seconds(lambda: [rows[i] for i in range(len(rows))])
    wording, told = seconds(lambda: [Single().said(row, None, tokenizer.template) for row in found])
    texts = ["".join(part.text for part in parts) for (parts,), _ in told]
    encoding, _ = seconds(lambda: [tokenizer.encode(text) for text in texts])
    whole, groups = seconds(lambda: read(found, Single(), tokenizer, None, "completion"))
    laying, _ = seconds(lambda: list(_packed(groups, tokenizer)))
    return {
        "read": reading,
        "template": wording,
        "the tokenizer alone": encoding,
        "tokens and masks": whole - wording,
        "packing": laying,
    }


def _packed(groups: list[Group], tokenizer: Tokenizer) -> Any:
    loader = Loader(groups, tokenizer, 16, 2048, "pack", epochs=1)
    with suppress(StopIteration):
        while True:
            yield loader.next()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, told in (
        ("cores", 2, "processor cores to use"),
        ("rows", 4000, "made-up dialogues"),
        ("vocabulary", 16_000, "size of the trained tokenizer"),
        ("batch", 16, "rows of a batch"),
        ("seq", 2048, "places of a row"),
        ("repeats", 5, "epochs measured"),
        ("pace", 78_600, "tokens a second of the loop that may wait: LoRA of a 1B model on an H200"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{told} ({default})")
    parser.add_argument("--data", help="a JSONL file of rows that can be tuned on")
    parser.add_argument("--tokenizer", help="a directory or file of a tokenizer")
    parser.add_argument("--profile", action="store_true", help="print where the first way spends its time")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tempfile.TemporaryDirectory() as folder:
        measured(options, Path(folder))


def measured(options: argparse.Namespace, folder: Path) -> None:
    path = Path(options.data) if options.data else folder / "rows.jsonl"
    made = [] if options.data and options.tokenizer else dialogues(options.rows)
    if not options.data:
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    tokenizer = load(options.tokenizer) if options.tokenizer else trained(folder, made, options.vocabulary)
    cores = len(os.sched_getaffinity(0))

    def timed(way: str, act: Callable[[], tuple[int, float]]) -> None:
        rates, spent = [], []
        for _ in range(options.repeats):
            begun, used = time.perf_counter(), time.process_time()
            tokens, fill = act()
            rates.append(tokens / (time.perf_counter() - begun))
            spent.append(tokens / (time.process_time() - used))
        told = {"way": way, "tokens_per_second": round(statistics.median(rates)), "best": round(max(rates))}
        told |= {"per_cpu_second": round(statistics.median(spent)), "tokens": tokens, "fill": round(fill, 4)}
        print(json.dumps(told | {"cores": cores, "load": round(os.getloadavg()[0], 1)}), flush=True)

    def kept(root: Path) -> cache.Tokenised:
        return cache.tokenised(jsonl(path), tokenizer, Single(), root=root)

    def making() -> tuple[int, float]:
        with tempfile.TemporaryDirectory(dir=folder) as root:
            return epoch(kept(Path(root)), tokenizer, options)

    timed("as read", lambda: epoch(jsonl(path), tokenizer, options))
    timed("into the cache, and from it", making)
    timed("from the cache", lambda: epoch(kept(folder / "kept"), tokenizer, options))
    for way, rows in (("as read", jsonl(path)), ("from the cache", kept(folder / "kept"))):
        share = round(waited(rows, tokenizer, options), 4)
        print(json.dumps({"way": way, "pace": options.pace, "waiting": share, "cores": cores}), flush=True)
    print(json.dumps({"seconds of an epoch": {k: round(v, 3) for k, v in stages(jsonl(path), tokenizer).items()}}))
    if options.profile:
        with cProfile.Profile() as profile:
            epoch(jsonl(path), tokenizer, options)
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
