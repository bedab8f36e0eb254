# SPDX-License-Identifier: Apache-2.0
"""Every method of tuning on the built-in model and tasks: what it trains, what it scores, what it costs.

    python tools/compare_deltas.py --seeds 3 --steps 300 > table.md
    python tools/compare_deltas.py --only lora prefix --sweep

Each method tunes the nano base on the quickstart's mixture (the same rows for each, another draw for each seed) at the
learning rate below, which `--sweep` looks for by the held-out loss at one seed. Scores are means over the tasks' test
examples, of the trained tasks and of those held out, with the spread over seeds; time and memory are of this machine.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxpost import delta, params
from jaxpost.arrays import HostBatch, Tree
from jaxpost.data.batches.loader import Loader
from jaxpost.models import decoder
from jaxpost.recipes import base, sft, trained
from jaxpost.recipes.assembly import Assembly, DeltaConfig, assemble, reserving
from jaxpost.recipes.review import measure, suites
from jaxpost.recipes.run import place
from jaxpost.sample import Sampling, generate
from jaxpost.shard import MeshShape, make_mesh

DATA = sft.Tasks(
    held_out_tasks=("smaller_thing", "list_has", "similar", "job_of", "mood", "kind_follows"),
    held_out_clusters=("comparison", "reading"),
)


@dataclass(frozen=True)
class Entry:
    """A method, the peak of its learning rate, and how its base is stored."""

    method: DeltaConfig
    lr: float
    quant: str = "none"


METHODS: dict[str, Entry] = {
    "full": Entry(delta.Full(), 1e-3),
    "LoRA r16": Entry(delta.Lora(rank=16, alpha=16.0), 5e-3),
    "QLoRA r16 (NF4)": Entry(delta.Lora(rank=16, alpha=16.0), 5e-3, "nf4"),
    "DoRA r16": Entry(delta.Dora(rank=16, alpha=16.0), 5e-3),
    "AdaLoRA 24 to 16": Entry(delta.AdaLora(rank=24, target=16, alpha=16.0, warmup=30, settle=100, every=10), 1e-2),
    "VeRA r256": Entry(delta.Vera(rank=256), 5e-2),
    "IA3": Entry(delta.Ia3(), 1e-1),
    "adapters (Houlsby)": Entry(delta.Adapters("houlsby", reduction=8), 1.5e-2),
    "adapters (Pfeiffer)": Entry(delta.Adapters("pfeiffer", reduction=8), 2e-2),
    "BitFit": Entry(delta.BitFit(add=True), 5e-2),
    "prefix 20": Entry(delta.Prefix(20), 2e-1),
    "prefix 20, written by a network": Entry(delta.Prefix(20, hidden=256), 5e-3),
    "prompt 20": Entry(delta.Prompt(20), 2e-1),
    "prompt 100": Entry(delta.Prompt(100), 2e-1),
    "prompt 20, infix": Entry(delta.Prompt(20, place="between"), 2e-1),
    "P-tuning 20 (LSTM)": Entry(delta.Ptuning(20), 1e-2),
}
RATES = (0.3, 1.0, 3.0)  # what --sweep multiplies the learning rate by


@dataclass(frozen=True)
class Bench:
    """What all methods share."""

    options: argparse.Namespace
    mesh: Any
    loaded: dict[str, base.Loaded]

    def config(self, entry: Entry, lr: float) -> sft.Config:
        return sft.Config(
            run="",
            model=sft.Pretrained("nano", dtype="float32"),
            delta=entry.method,
            data=DATA,
            batches=sft.Batches(rows=self.options.rows, seq_len=self.options.seq_len),
            optim=sft.Optimiser(lr=lr, warmup=min(10, self.options.steps // 4)),
            train=sft.Training(steps=self.options.steps),
        )

    def batches(self, config: sft.Config, tokenizer: Any, seed: int | None) -> Iterator[HostBatch]:
        """Training batches drawn by a seed, or the held-out ones (`None`)."""
        held = seed is None
        rows = DATA.held_out(0) if held else DATA.training(seed)
        shape = {"batch": config.batches.rows, "seq_len": config.batches.seq_len, "packing": config.batches.packing}
        loader = Loader(rows, tokenizer, seed=seed, epochs=1 if held else None, columns=None, **shape)
        while True:
            try:
                yield loader.next()
            except StopIteration:
                return


@dataclass(frozen=True)
class Tuned:
    """A trained delta over its base, and what training it took."""

    weights: Tree
    delta: Tree
    loss: float
    step_ms: float
    gib: float


def tune(bench: Bench, entry: Entry, lr: float, seeds: Sequence[int]) -> Iterator[Tuned]:
    """The method trained with every seed, compiled once."""
    config, model = bench.config(entry, lr), bench.loaded[entry.quant]
    tokenizer = reserving(model.tokenizer, entry.method)
    assembly: Assembly = assemble(
        model.config, model.specs, entry.method, config.optim, bench.options.steps, bench.mesh, tokenizer.encode
    )
    programs = sft.programs(config, assembly)
    step, evaluate = (programs[name].call.lower(*programs[name].arguments).compile() for name in ("step", "evaluate"))
    analysis = step.memory_analysis()
    held = [place(batch, bench.mesh) for batch in itertools.islice(bench.batches(config, tokenizer, None), 8)]
    for seed in seeds:
        state, fixed = assembly.make(jax.random.key(seed + 1), model.weights)
        frozen = {"base": model.weights, "fixed": fixed}
        key = jax.device_put(jax.random.key(seed), programs["step"].arguments[-1].sharding)
        times = []
        for batch in itertools.islice(bench.batches(config, tokenizer, seed), bench.options.steps):
            placed = place(batch, bench.mesh)
            begun = time.monotonic()
            state, metrics = step(state, frozen, placed, key)
            jax.block_until_ready(metrics)
            times.append(time.monotonic() - begun)
        found = [jax.device_get(evaluate(state.trainable, frozen, batch)) for batch in held]
        counts = [float(f["predictions"]) for f in found]
        loss = sum(float(f["loss"]) * n for f, n in zip(found, counts, strict=True)) / sum(counts)
        whole = delta.combine(state.trainable, fixed)
        gib = (analysis.argument_size_in_bytes + analysis.temp_size_in_bytes) / 2**30
        yield Tuned(delta.bind(model.weights, whole), whole, loss, 1e3 * statistics.median(times[5:]), gib)


def scores(bench: Bench, weights: Tree, tokenizer: Any) -> dict[str, float]:
    """Mean score over the trained tasks, and over those held out (alone and with their clusters); nothing if no
    examples are asked for."""
    parts = suites(DATA, bench.options.examples)
    if not parts:
        return {}
    found, _ = measure(parts, bench.loaded["none"].config, tokenizer, weights, 32)
    groups: dict[str, list[float]] = {"trained": [], "held out": []}
    for part in parts:
        if part.task.name in found:
            groups["trained" if part.group == parts[0].group else "held out"].append(found[part.task.name])
    return {name: 100 * statistics.mean(values) for name, values in groups.items()}


def decode_ms(bench: Bench, weights: Tree, tokenizer: Any) -> float:
    """Milliseconds a token of 32 rows, greedily, the fastest of five: the reading of the prompt taken off."""
    config = bench.loaded["none"].config
    virtual = tokenizer.virtual.ids.tolist()
    prompts = [[*virtual, *range(5, 37)] for _ in range(32)]

    def seconds(tokens: int) -> float:
        generate(config, weights, prompts, Sampling(max_new=tokens))
        begun = time.monotonic()
        generate(config, weights, prompts, Sampling(max_new=tokens))
        return time.monotonic() - begun

    return min(1e3 * (seconds(128) - seconds(16)) / 112 for _ in range(5))


def stored_bytes(tree: Tree) -> int:
    """What the trained numbers take as a file."""
    flat = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "delta.safetensors"
        save_file(flat, path)
        return path.stat().st_size


def row(bench: Bench, name: str, entry: Entry) -> dict[str, Any]:
    model = bench.loaded[entry.quant]
    tokenizer = reserving(model.tokenizer, entry.method)
    seeds, results = range(bench.options.seeds), []
    for tuned in tune(bench, entry, entry.lr, seeds):
        results.append({"loss": tuned.loss, **scores(bench, tuned.weights, tokenizer)})
    trainable = delta.partition(tuned.delta)[0]
    config = model.config
    count = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    kv = 2 * config.layers * config.kv_heads * config.head_size * 4
    made = {
        "method": name,
        "lr": entry.lr,
        "trained": count,
        "percent": 100 * count / params.count(decoder.specs(config)),
        **{f"{key} each": [r[key] for r in results] for key in results[0]},
        "bytes": stored_bytes(delta.partition(delta.spread(tuned.delta))[0]),
        "step ms": tuned.step_ms,
        "program GiB": tuned.gib,
        "decode ms": decode_ms(bench, tuned.weights, tokenizer),
        "KV bytes": kv * entry.method.virtual,
    }
    if name == "full":
        bench.loaded["fine"] = replace(model, weights=delta.fold(model.weights, tuned.delta))
    return made


def one_bit_row(bench: Bench) -> dict[str, Any]:
    """The fully tuned model of the last seed as one bit a weight."""
    plain, fine = bench.loaded["none"], bench.loaded["fine"].weights
    specs = decoder.specs(plain.config)
    made = delta.one_bit(fine, plain.weights, specs)
    weights = delta.bind(plain.weights, made)
    trained = sum(leaf.size for leaf in jax.tree.leaves(delta.partition(made)[0]))
    found = scores(bench, weights, plain.tokenizer)
    return {
        "method": "BitDelta of full (not distilled)",
        "lr": None,
        "trained": trained,
        "percent": 100 * trained / params.count(specs),
        "loss each": [],
        **{f"{key} each": [value] for key, value in found.items()},
        "bytes": stored_bytes(made),
        "step ms": None,
        "program GiB": None,
        "decode ms": decode_ms(bench, weights, plain.tokenizer),
        "KV bytes": 0,
    }


def spread(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    around = f" ± {(max(values) - min(values)) / 2:{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{around}"


def line(found: dict[str, Any]) -> str:
    def number(name: str, form: str) -> str:
        return "" if found[name] is None else f"{found[name]:{form}}"

    cells = [
        found["method"],
        number("lr", "g"),
        number("trained", ","),
        number("percent", ".2f"),
        spread(found["loss each"], ".3f"),
        spread(found.get("trained each", ()), ".1f"),
        spread(found.get("held out each", ()), ".1f"),
        number("bytes", ","),
        number("step ms", ".1f"),
        number("program GiB", ".2f"),
        number("decode ms", ".2f"),
        number("KV bytes", ","),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = "method | lr | trained | % | held-out loss | trained tasks % | held-out tasks % | bytes on disk | step ms"
HEAD += " | step GiB | decode ms a token | KV bytes a sequence"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of methods' names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--examples", type=int, default=30, help="test examples of every task; 0: only the costs")
    parser.add_argument("--sweep", action="store_true", help="only the held-out loss, by learning rate")
    parser.add_argument("--json", type=Path, help="also write every number there")
    options = parser.parse_args()
    mesh = make_mesh(MeshShape())
    chosen = {n: e for n, e in METHODS.items() if not options.only or any(part in n for part in options.only)}
    with jax.set_mesh(mesh):
        plain = trained.load(sft.Pretrained("nano", dtype="float32"), mesh)
        kinds = {entry.quant for entry in chosen.values()} - {"none"}
        loaded = {
            kind: trained.load(sft.Pretrained("nano", dtype="float32", quant=kind), mesh) for kind in sorted(kinds)
        }
        bench = Bench(options, mesh, {"none": plain, **loaded})
        if options.sweep:
            for name, entry in chosen.items():
                losses = {
                    f"{entry.lr * r:g}": round(next(tune(bench, entry, entry.lr * r, [0])).loss, 4) for r in RATES
                }
                print(name, losses, flush=True)
            return
        print(f"| {HEAD} |\n|{' --- |' * (HEAD.count('|') + 1)}")
        kept = []
        untuned = scores(bench, plain.weights, plain.tokenizer)
        if untuned:
            print(f"| untuned | | | | | {untuned['trained']:.1f} | {untuned['held out']:.1f} | | | | | |", flush=True)
        for name, entry in chosen.items():
            kept.append(row(bench, name, entry))
            print(line(kept[-1]), flush=True)
        if "fine" in bench.loaded:
            kept.append(one_bit_row(bench))
            print(line(kept[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"device": jax.devices()[0].device_kind, "rows": kept}, indent=1))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
