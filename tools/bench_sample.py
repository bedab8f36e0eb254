# SPDX-License-Identifier: Apache-2.0
"""How fast text is sampled, how long a step of decoding takes, and how much memory.

    python tools/bench_sample.py --shape llama-1b --batch 64 --prompt 256 --new 256
    python tools/bench_sample.py --shape llama-1b --batch 64 --samples 8 --delta lora --merged

Random weights and prompts; nothing ends early, so every row is written to its full length. First the samples of a small
model are held against passes over the whole text, on the same device, and a few of the measured one; then one JSON line
for each repeat and one with their medians.
"""

import argparse
import json
import statistics
import time
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import op_times
from bench_train import CHOSEN, chosen

from jaxpost import delta, params, quant, trees
from jaxpost.arrays import Tree
from jaxpost.kernels.decode_attention import KV, bytes_per_entry
from jaxpost.kernels.dispatch import forced
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.models.presets import PRESETS
from jaxpost.recipes.drawn import drawn
from jaxpost.sample import Completion, Sampling, generate, merged
from jaxpost.sample.engine import CHUNK, Engine, _prefill, rounded
from jaxpost.shard import MeshShape, make_mesh

FORMATS = {"int8": quant.Int8(), "int4": quant.Int4(), "nf4": quant.Nf4(), "fp8": quant.Fp8()}
SMALL = Decoder(vocab=1000, d=64, layers=3, heads=4, kv_heads=2, head_size=16, ffn=96, max_length=128)


def gaps(config: Decoder, weights: Tree, prompts: list[list[int]], found: list[Completion], chosen: bool) -> np.ndarray:
    """How far the samples' log-probabilities are from those of one pass over the text; of greedy ones (`chosen`), how
    far the tokens are from the likeliest."""

    @jax.jit
    def scored(weights: Tree, tokens: jax.Array) -> jax.Array:
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        logits = decoder.logits(config, weights, tokens, decoder.rows(tokens, jnp.ones_like(tokens), places, most=1))
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    off = []
    for prompt, completion in zip(prompts, found, strict=True):
        tokens = jnp.asarray([prompt + completion.tokens], jnp.int32)
        rows = np.asarray(scored(weights, tokens)[0, len(prompt) - 1 : -1])
        own = rows[np.arange(len(completion.tokens)), completion.tokens]
        off.append(np.max(rows, axis=1) - own if chosen else np.abs(own - completion.log_probs))
    return np.concatenate(off)


def check_small() -> dict[str, float]:
    """A small model in float32: greedy tokens are the likeliest of the whole pass, and log-probabilities agree."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, SMALL.vocab, n).tolist() for n in (5, 1, 16, 9, 3)] * 2
    with jax.default_matmul_precision("highest"):
        weights = params.init(decoder.specs(SMALL), jax.random.key(0))
        weights = jax.tree.map(lambda w: 4 * w if w.ndim > 2 else w, weights)
        errors = {}
        for name, sampling in (("greedy", Sampling(24)), ("drawn", Sampling(24, temperature=1.0))):
            found = generate(SMALL, weights, prompts, sampling, slots=4)
            errors[name] = float(gaps(SMALL, weights, prompts, found, name == "greedy").max())
    assert max(errors.values()) < 1e-3, f"a small model samples wrongly: {errors}"
    return errors


def build(options: argparse.Namespace, config: Decoder) -> Tree:
    """Weights as they are sampled from: random, stored as asked for, under a delta that changes something."""
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    specs = params.filled(decoder.specs(config))
    stored = specs if options.quant == "none" else quant.quantise_specs(specs, FORMATS[options.quant])
    base = drawn(specs, stored, mesh, jax.random.key(0))
    if options.delta == "none":
        return base
    flat = trees.flatten(params.init(delta.Lora(rank=options.rank)(decoder.specs(config)), jax.random.key(1)))
    edits = {path: edit.replace(b=edit.b + 0.01) for path, edit in flat.items()}
    bound = delta.bind(base, edits)
    return jax.block_until_ready(merged(config, bound)) if options.merged else bound


def prefill_ms(config: Decoder, weights: Tree, prompts: list[list[int]]) -> float:
    """How long all prompts of a batch take to be read in one go."""
    tokens = np.zeros((len(prompts), rounded(len(prompts[0]))), np.int32)
    tokens[:, : len(prompts[0])] = prompts
    lengths, times = np.full(len(prompts), len(prompts[0]), np.int32), []
    for _ in range(4):
        begun = time.monotonic()
        jax.block_until_ready(_prefill(config, weights, tokens, lengths))
        times.append(time.monotonic() - begun)
    return 1e3 * min(times)


def measure(options: argparse.Namespace) -> None:
    config = PRESETS[options.shape]
    weights = jax.block_until_ready(build(options, config))
    rows = options.rows or options.batch
    rng = np.random.default_rng(0)
    prompts = rng.integers(0, config.vocab, (rows // options.samples, options.prompt)).tolist()
    sampling = Sampling(options.new, options.temperature, options.top_k, options.top_p, kv=options.kv)
    few = generate(config, weights, prompts[:4], Sampling(32, temperature=1.0, kv=options.kv), slots=4)
    off = gaps(config, weights, prompts[:4], few, chosen=False)
    ring = rounded(options.prompt) + rounded(options.new)
    cache = 2 * config.layers * config.kv_heads * ring * bytes_per_entry(options.kv, config.head_size, config.dtype)
    known = {**vars(options), "rows": rows, "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    known["weights_gib"] = round(sum(x.nbytes for x in jax.tree.leaves(weights)) / 2**30, 3)
    known["cache_gib"] = round(options.batch * cache / 2**30, 3)
    known |= {"gap_mean": round(float(off.mean()), 5), "gap_max": round(float(off.max()), 5)}
    assert off.mean() < 0.05, f"samples are not what the model says: {known}"
    found = []
    for number in range(options.repeats + 1):
        begun, stamps = time.monotonic(), []
        engine = Engine(config, weights, prompts, sampling, (), None, options.samples, options.batch)
        for _ in engine.run():
            stamps.append(time.monotonic() - begun)
        if number == 0:
            known["first_s"] = round(stamps[-1], 2)
            continue
        chunks = len(stamps) - 1
        found.append(
            {
                "tokens_per_second": round(sum(len(row.tokens) for row in engine.rows) / stamps[-1]),
                "seconds": round(stamps[-1], 4),
                "step_ms": round(1e3 * (stamps[-1] - stamps[0]) / (chunks * CHUNK), 3) if chunks else None,
                "first_chunk_ms": round(1e3 * stamps[0], 1),
            }
        )
        print(json.dumps(found[-1]), flush=True)
        del engine
    if options.profile:
        with op_times.traced() as times:
            for _ in Engine(config, weights, prompts, sampling, (), None, options.samples, options.batch).run():
                pass
        print(op_times.table(times, options.new, options.profile), flush=True)
    stats = jax.devices()[0].memory_stats() or {}
    known["peak_gib"] = round(stats.get("peak_bytes_in_use", 0) / 2**30, 2)
    known["prefill_ms"] = round(prefill_ms(config, weights, prompts[: options.batch]), 2)
    medians = {name: statistics.median(each[name] for each in found if each[name] is not None)
               for name in found[0] if found[0][name] is not None}  # fmt: skip
    print(json.dumps({**known, **medians}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PRESETS, default="llama-1b")
    parser.add_argument("--batch", type=int, default=64, help="rows that are written at once")
    parser.add_argument("--rows", type=int, default=0, help="rows in all; more than --batch are refilled")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--samples", type=int, default=1, help="rows that share a prompt")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--delta", choices=("none", "lora"), default="none")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--merged", action="store_true", help="make the delta part of a copy of the weights first")
    parser.add_argument("--quant", choices=("none", *FORMATS), default="none", help="how the weights are stored")
    parser.add_argument("--kv", choices=get_args(KV), default="model", help="how keys and values are stored")
    parser.add_argument("--impl", action="append", default=[], type=chosen, help=CHOSEN)
    parser.add_argument("--profile", type=int, default=0, help="show so many kernels, the most expensive ones first")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps({"check": {name: round(error, 7) for name, error in check_small().items()}}), flush=True)
    with forced(**dict(options.impl)):
        measure(options)


if __name__ == "__main__":
    main()
