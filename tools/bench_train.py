# SPDX-License-Identifier: Apache-2.0
"""How fast a training step is, how much memory it takes, and how long the first one takes to come.

    python tools/bench_train.py --shape llama-1b --delta lora --batch 8 --seq 2048 --remat none

One JSON line a setting: medians over --steps steps behind --warmup ones, random weights and tokens, the very step
that `jaxpost train` runs. Several values of --remat or --delta, separated by commas, are measured one after the other.
"""

import time

STARTED = time.monotonic()

import argparse  # noqa: E402
import json  # noqa: E402
import statistics  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import op_times  # noqa: E402

from jaxpost import params  # noqa: E402
from jaxpost.delta import Adapters, Dora, Full, Lora, Method, Prefix, Prompt  # noqa: E402
from jaxpost.kernels.dispatch import forced  # noqa: E402
from jaxpost.models import decoder  # noqa: E402
from jaxpost.models.presets import PRESETS  # noqa: E402
from jaxpost.quant import ENDS, Nf4, quantise_specs  # noqa: E402
from jaxpost.recipes import base as bases  # noqa: E402
from jaxpost.recipes import sft  # noqa: E402
from jaxpost.recipes.assembly import assemble  # noqa: E402
from jaxpost.recipes.drawn import drawn  # noqa: E402
from jaxpost.recipes.run import place  # noqa: E402
from jaxpost.shard import MeshShape, make_mesh  # noqa: E402

FORMATS = {
    **bases.FORMATS,
    "nf4-take": Nf4(lookup="take"),
    "nf4-single": Nf4(double=False),
    "nf4-single-take": Nf4(double=False, lookup="take"),
}


CHOSEN = "have an operation served by one implementation: attention=splash; may be given several times"


def chosen(text: str) -> tuple[str, str]:
    """An operation and the name of its implementation."""
    operation, _, name = text.partition("=")
    return operation, name


def method_of(name: str, rank: int) -> Method:
    """The methods that are measured, all with settings that are usual for them."""
    made: dict[str, Method] = {
        "lora": Lora(rank=rank, alpha=2.0 * rank),
        "dora": Dora(rank=rank, alpha=2.0 * rank),
        "full": Full(),
        "prefix": Prefix(20),
        "prompt": Prompt(100, init="random"),
        "adapters": Adapters("houlsby"),
    }
    if name not in made:
        raise SystemExit(f"--delta {name}: known are {', '.join(made)}")
    return made[name]


def batch_of(rows: int, length: int, vocab: int, segments: int, virtual: int) -> dict[str, np.ndarray]:
    """Random full rows of `segments` examples of equal length, every token trained, behind the places of a prompt."""
    rng = np.random.default_rng(0)
    size = length // segments
    place = np.arange(segments * size)
    pad = length - len(place)
    row = {"segments": np.pad(place // size + 1, (0, pad)), "positions": np.pad(place % size, (0, pad))}
    batch = {name: np.tile(x.astype(np.int32), (rows, 1)) for name, x in row.items()}
    batch["tokens"] = rng.integers(0, vocab, (rows, length), dtype=np.int32)
    reserved = batch["positions"] < virtual
    batch["tokens"] = np.where(reserved, -1 - batch["positions"], batch["tokens"])
    batch["targets"] = np.maximum(np.roll(batch["tokens"], -1, axis=1), 0)
    batch["mask"] = ((batch["segments"] > 0) & ~reserved).astype(np.float32)
    return batch


def measure(options: argparse.Namespace, delta: str, remat: str, started: float) -> dict[str, object]:
    model = PRESETS[options.shape]
    kind = method_of(delta, options.rank)
    config = sft.Config(
        run="",
        model=sft.Fresh(model, tokenizer=""),
        delta=kind,
        batches=sft.Batches(options.batch, options.seq, packing="pack" if options.segments > 1 else "none"),
        loss=sft.Loss(chunk=options.chunk),
        train=sft.Training(
            remat=remat, microbatches=options.microbatches, mesh=MeshShape(options.data, -1, options.tensor)
        ),
    )
    mesh = make_mesh(config.train.mesh)
    with jax.set_mesh(mesh), forced(**dict(options.impl)):
        specs = params.filled(decoder.specs(model))
        stored = specs if options.quant == "none" else quantise_specs(specs, FORMATS[options.quant])
        stored = quantise_specs(stored, FORMATS[options.ends], ENDS) if options.ends else stored
        assembly = assemble(model, stored, kind, config.optim, 1000, mesh)
        base = drawn(specs, stored, mesh, jax.random.key(0))
        state, fixed = assembly.make(jax.random.key(1), base)
        frozen = {"base": base, "fixed": fixed}
        jax.block_until_ready((state, frozen))
        built = time.monotonic()
        program = sft.programs(config, assembly)["step"]
        lowered = program.call.lower(*program.arguments)
        traced = time.monotonic()
        step = lowered.compile()
        compiled = time.monotonic()
        batch = place(batch_of(options.batch, options.seq, model.vocab, options.segments, kind.virtual), mesh)
        key = jax.device_put(jax.random.key(0), program.arguments[-1].sharding)
        times = []
        first = 0.0
        for _ in range(options.warmup + options.steps):
            begun = time.monotonic()
            state, metrics = step(state, frozen, batch, key)
            jax.block_until_ready(metrics)
            times.append(time.monotonic() - begun)
            first = first or time.monotonic() - started
        loss = float(metrics["loss"])
        if options.profile:
            with op_times.traced() as found:
                for _ in range(2):
                    state, metrics = step(state, frozen, batch, key)
                jax.block_until_ready(metrics)
            print(op_times.table(found, 2, options.profile), flush=True)
        if options.hlo:
            Path(options.hlo).write_text(step.as_text())
    median = statistics.median(times[options.warmup :])
    tokens = options.batch * options.seq
    stats = jax.devices()[0].memory_stats() or {}
    analysis = step.memory_analysis()
    planned = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    return {
        "shape": options.shape,
        "delta": delta,
        "quant": options.quant,
        "ends": options.ends,
        "weights_gib": round(sum(leaf.nbytes for leaf in jax.tree.leaves(frozen["base"])) / 2**30, 3),
        "rank": options.rank if isinstance(kind, Lora) else None,
        "remat": remat,
        "batch": options.batch,
        "seq": options.seq,
        "segments": options.segments,
        "chunk": options.chunk,
        "impl": dict(options.impl),
        "device": jax.devices()[0].device_kind,
        "mesh": dict(mesh.shape),
        "tokens_per_second": round(tokens / median),
        "step_ms": round(1e3 * median, 2),
        "spread_ms": [round(1e3 * t, 2) for t in (min(times[options.warmup :]), max(times[options.warmup :]))],
        "model_tflops": round(assembly.flops_per_token * tokens / median / 1e12, 1),
        "peak_gib": round(stats.get("peak_bytes_in_use", 0) / 2**30, 2),
        "program_gib": round((planned - analysis.alias_size_in_bytes) / 2**30, 2),
        "build_s": round(built - started, 2),
        "trace_s": round(traced - built, 2),
        "compile_s": round(compiled - traced, 2),
        "first_step_s": round(first, 2),
        "loss": round(loss, 4),
        "finite": bool(jnp.isfinite(loss)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PRESETS, default="llama-1b")
    parser.add_argument("--delta", default="lora", help="lora, dora, full, prefix, ...; several with commas")
    parser.add_argument("--quant", choices=("none", *FORMATS), default="none", help="how the base's weights are stored")
    parser.add_argument("--ends", choices=("", "int8"), default="", help="how embedding and head are stored")
    parser.add_argument(
        "--remat", default="none", help="none, dots, most, attention, result, full; several with commas"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--segments", type=int, default=1, help="examples packed into each row")
    parser.add_argument("--data", type=int, default=1, help="devices with a copy of the weights each")
    parser.add_argument("--tensor", type=int, default=1, help="devices that heads are cut over; fsdp takes the rest")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens whose logits exist at a time")
    parser.add_argument("--impl", action="append", default=[], type=chosen, help=CHOSEN)
    parser.add_argument("--profile", type=int, default=0, help="show so many operations, the most expensive ones first")
    parser.add_argument("--hlo", default="", help="write the compiled program's text into this file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    options = parser.parse_args()
    started = STARTED
    for delta in options.delta.split(","):
        for remat in options.remat.split(","):
            try:
                print(json.dumps(measure(options, delta, remat, started)), flush=True)
            except Exception as error:  # one setting that runs out of memory must not hide the others
                text = str(error).splitlines()[0][:300]
                print(json.dumps({"delta": delta, "remat": remat, "error": text}), flush=True)
            started = time.monotonic()


if __name__ == "__main__":
    main()
