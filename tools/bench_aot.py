# SPDX-License-Identifier: Apache-2.0
"""What a step of training or decoding takes on devices that are not there: really compiled, run by nobody.

    python tools/bench_aot.py --topology v5e:2x4 --shape llama-1b --delta lora --batch 8 --seq 2048 --remat most
    python tools/bench_aot.py --topology v5e:1x1 --shape llama-1b --batch 64 --decode 2048 --kv int8
    python tools/bench_aot.py --topology h100:8 --shape llama-8b --batch 8 --seq 4096 --remat attention

One JSON line a setting; several values of --topology or --remat, separated by commas, are compiled one after the other.
It is the very step that `jaxpost train` runs, or what it decodes a token a row with. `peak_gib` is what a chip's memory
must hold. Cycles are the TPU compiler's own estimates and leave Pallas kernels and waiting for collectives out (see
`compiled.py`); for GPUs there are none.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import compiled  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from bench_train import CHOSEN, FORMATS, chosen, method_of  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from jaxpost import params  # noqa: E402
from jaxpost.faults import Fault  # noqa: E402
from jaxpost.kernels.decode_attention import KV  # noqa: E402
from jaxpost.kernels.dispatch import forced  # noqa: E402
from jaxpost.models import decoder  # noqa: E402
from jaxpost.models.presets import PRESETS  # noqa: E402
from jaxpost.quant import ENDS, quantise_specs  # noqa: E402
from jaxpost.recipes import sft  # noqa: E402
from jaxpost.recipes.assembly import assemble  # noqa: E402
from jaxpost.sample import Sampling  # noqa: E402
from jaxpost.sample.decode import begin, decode  # noqa: E402
from jaxpost.shard import MeshShape, make_mesh, shardings  # noqa: E402
from jaxpost.shard.aot import topology  # noqa: E402


def step_of(options: argparse.Namespace, place: str, remat: str) -> tuple[Any, float, float]:
    """The compiled step, and the seconds that tracing and compiling took."""
    model = PRESETS[options.shape]
    kind: Any = method_of(options.delta, options.rank)
    config = sft.Config(
        run="",
        model=sft.Fresh(model, tokenizer=""),
        delta=kind,
        batches=sft.Batches(options.batch, options.seq, packing="pack" if options.segments > 1 else "none"),
        loss=sft.Loss(chunk=options.chunk),
        train=sft.Training(
            remat=remat,  # pyright: ignore[reportArgumentType]
            microbatches=options.microbatches,
            mesh=MeshShape(options.data, options.fsdp, options.tensor),
        ),
    )
    mesh = make_mesh(config.train.mesh, topology(place))
    with jax.set_mesh(mesh):
        stored = params.filled(decoder.specs(model))
        stored = stored if options.quant == "none" else quantise_specs(stored, FORMATS[options.quant])
        stored = quantise_specs(stored, FORMATS[options.ends], ENDS) if options.ends else stored
        begun = time.monotonic()
        if options.decode:
            lowered = decoding(options, model, stored, mesh)
        else:
            program = sft.programs(config, assemble(model, stored, kind, config.optim, 1000, mesh))["step"]
            lowered = program.call.lower(*program.arguments)
        traced = time.monotonic()
        return lowered.compile(), traced - begun, time.monotonic() - traced


def decoding(options: argparse.Namespace, model: decoder.Decoder, specs: Any, mesh: Mesh) -> Any:
    """A token for each of --batch rows, over a cache of --decode places."""

    def on(shape: Any, place: Any) -> Any:
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)

    weights = jax.tree.map(on, params.abstract(specs), shardings(specs, mesh))
    first = jax.jit(lambda: begin(model, options.batch, options.decode, options.kv)).lower()
    state = jax.tree.map(on, first.out_info, first.compile().output_shardings)

    def step(weights: Any, state: Any) -> Any:
        live, ends = jnp.ones(options.batch, bool), jnp.zeros(0, jnp.int32)
        return decode(model, weights, state, live, Sampling(1, temperature=1.0), ends, 1)

    return jax.jit(step, donate_argnums=1).lower(weights, state)


def report(options: argparse.Namespace, place: str, remat: str) -> dict[str, Any]:
    step, tracing, compiling = step_of(options, place, remat)
    memory, text = step.memory_analysis(), step.as_text()
    if options.hlo:
        Path(options.hlo).write_text(text)
    said = compiled.read(text)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = getattr(memory, "peak_memory_in_bytes", 0) or held + memory.temp_size_in_bytes
    if options.costly:
        for name, cycles in said.by_name.most_common(options.costly):
            print(f"{cycles:14,d}  {name}", flush=True)
    asked = {name: value for name, value in vars(options).items() if name not in ("hlo", "costly", "topology", "remat")}
    return {
        "topology": place,
        "remat": remat,
        **asked,
        "trace_s": round(tracing, 1),
        "compile_s": round(compiling, 1),
        "arguments_gib": round(memory.argument_size_in_bytes / 2**30, 3),
        "temporaries_gib": round(memory.temp_size_in_bytes / 2**30, 3),
        "peak_gib": round(peak / 2**30, 3),
        "donated_gib": round(memory.alias_size_in_bytes / 2**30, 3),
        "kernels": dict(said.kernels),
        "mega_cycles": round(said.cycles / 1e6, 1) or None,
        "open_loops": said.open_loops,
        "collectives": {kind: {"count": n, "mib": round(mib, 1)} for kind, (n, mib) in said.collectives.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--topology", default="v5e:2x4", help="v5e:2x4, v5p:2x2x2, v6e:2x4, h200, h100:8, ...; several with commas"
    )
    parser.add_argument("--shape", choices=PRESETS, default="llama-1b")
    parser.add_argument("--delta", default="lora", help="lora, dora, full, prefix, ...")
    parser.add_argument("--quant", choices=("none", *FORMATS), default="none", help="how the base's weights are stored")
    parser.add_argument("--ends", choices=("", "int8"), default="", help="how embedding and head are stored")
    parser.add_argument(
        "--remat", default="most", help="none, dots, most, attention, result, full; several with commas"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--decode", type=int, default=0, help="a step of decoding instead, over so many places a row")
    parser.add_argument("--kv", choices=get_args(KV), default="model", help="how the cache is stored then")
    parser.add_argument("--segments", type=int, default=2, help="1: rows of one example; more: packed rows")
    parser.add_argument("--data", type=int, default=1, help="chips with a copy of the weights each")
    parser.add_argument("--fsdp", type=int, default=-1, help="chips that weights and rows are cut over; -1: the rest")
    parser.add_argument("--tensor", type=int, default=1, help="chips that heads are cut over")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=2048, help="tokens whose logits exist at a time")
    parser.add_argument("--impl", action="append", default=[], type=chosen, help=CHOSEN)
    parser.add_argument("--costly", type=int, default=0, help="show so many operations, the most expensive ones first")
    parser.add_argument("--hlo", default="", help="write the compiled program's text into this file")
    options = parser.parse_args()
    for place in options.topology.split(","):
        for remat in options.remat.split(","):
            try:
                with forced(**dict(options.impl)):
                    print(json.dumps(report(options, place, remat)), flush=True)
            except Fault as fault:
                raise SystemExit(str(fault)) from fault
            except Exception as error:  # one setting that does not fit must not hide the others
                text = " ".join(str(error).split())[:400]
                print(json.dumps({"topology": place, "remat": remat, "impl": options.impl, "error": text}), flush=True)


if __name__ == "__main__":
    main()
