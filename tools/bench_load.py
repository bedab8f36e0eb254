# SPDX-License-Identifier: Apache-2.0
"""How long a checkpoint takes to load, and how much host memory above the weights' own.

    python tools/bench_load.py [--shape llama-8b] [--layers 8] [--folder /tmp] [--dtype float32] [--quant nf4]
                               [--kept DIRECTORY]

Writes a checkpoint of random numbers of a preset's shape (as deep as `--layers` says) in shards of 5 GB, loads it in a
process of its own and deletes it; `--kept` loads one that is there. Prints one JSON line: `weights_gib` as they rest on
the devices, `above_gib` (what the process peaked at, less what it had before, less the weights where they rest in host
memory), `process_gib` (before loading: Python, JAX and its devices), `seconds`, `gb_per_s` of the stored bytes.
The file system's cache holds what was just written if it fits: for a cold start drop it first (a privileged command).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxpost.interop import families, names, weights
from jaxpost.models.architecture import Decoder
from jaxpost.models.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PRESETS, default="llama-8b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where there is room for the checkpoint")
    parser.add_argument("--dtype", help="another type than the stored one")
    parser.add_argument("--quant", help="quantise on the way: int8, int4, nf4, fp8")
    parser.add_argument("--kept", help="load this directory instead")
    parser.add_argument("--here", action="store_true", help="load in this process, which has loaded nothing yet")
    args = parser.parse_args()
    if args.kept and args.here:
        print(json.dumps(measured(args.kept, args.dtype, args.quant)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench_load_") as made:
        if not args.kept:
            shape = replace(PRESETS[args.shape], dtype="bfloat16")
            write(Path(made), replace(shape, layers=args.layers or shape.layers))
        again = [sys.executable, __file__, "--here", "--kept", args.kept or made]
        options = {"--dtype": args.dtype, "--quant": args.quant}
        given = [word for name, value in options.items() if value for word in (name, value)]
        subprocess.run(again + given, check=True)


def write(directory: Path, config: Decoder) -> None:
    """A checkpoint of that shape, with one block of random numbers again and again."""
    family, config = families.of(config)
    families.write(directory, config, {})
    shapes = names.shapes(names.parts(family, config))
    block = np.random.default_rng(0).normal(0, 0.02, 2**24).astype(ml_dtypes.bfloat16)

    def numbers() -> Iterator[np.ndarray]:
        for shape in shapes.values():
            yield np.resize(block, shape)

    weights.write(directory, shapes, block.dtype, numbers(), 5 * 10**9)


def measured(directory: str, dtype: str | None, quant: str | None) -> dict[str, float | str]:
    import jax

    from jaxpost.interop import hf
    from jaxpost.recipes.base import FORMATS

    device = jax.devices()[0]
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    before = peak()
    begun = time.perf_counter()
    _, params, _ = hf.stored(directory, dtype, format=FORMATS[quant] if quant else None)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - begun
    rest = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    stored = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    in_host = rest if device.platform == "cpu" else 0
    found = {
        "weights_gib": rest / 2**30,
        "above_gib": (peak() - before - in_host) / 2**30,
        "process_gib": before / 2**30,
        "seconds": seconds,
        "gb_per_s": stored / 1e9 / seconds,
    }
    return {"device": device.device_kind} | {name: round(value, 3) for name, value in found.items()}


def peak() -> int:
    """The most bytes of memory that this process had so far. (getrusage would count its parent's before it began.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
