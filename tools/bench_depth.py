# SPDX-License-Identifier: Apache-2.0
"""How building and compiling a training step grows with depth: it should not, for layers are scanned.

    python tools/bench_depth.py [--depths 2 32] [--d 512] [--remat full] [--repeats 5]

Prints one JSON line a depth, `{"layers", "init_s", "step_s", "total_s"}` (the fastest of the repeats: initialisation
and one gradient step, each traced, lowered and compiled, nothing run), and one with the ratio of the deepest to the
shallowest.
"""

import argparse
import dataclasses
import json
import time
from typing import get_args

import jax
import jax.numpy as jnp

from jaxpost import params as parameters
from jaxpost.arrays import Array, Tree
from jaxpost.kernels.attention import Rows
from jaxpost.models.decoder import Decoder, embed, head, specs, trunk
from jaxpost.models.remat import Remat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 32])
    parser.add_argument("--d", type=int, default=512, help="width; the other sizes follow from it")
    parser.add_argument("--remat", choices=get_args(Remat), default="full")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    shape = Decoder(
        vocab=4096, d=args.d, layers=1, heads=args.d // 64, kv_heads=args.d // 128, head_size=64, ffn=3 * args.d
    )
    compile_times(shape, args.remat)  # the first compilation of a process also sets up the compiler
    # In turn, so that whatever else the machine does meets all depths alike.
    found: dict[int, list[tuple[float, float]]] = {layers: [] for layers in args.depths}
    for _ in range(args.repeats):
        for layers, times in found.items():
            times.append(compile_times(dataclasses.replace(shape, layers=layers), args.remat))
    totals = {}
    for layers, times in found.items():
        init_s, step_s = (min(column) for column in zip(*times, strict=True))
        totals[layers] = init_s + step_s
        line = {"layers": layers, "init_s": init_s, "step_s": step_s, "total_s": totals[layers]}
        print(json.dumps({name: round(value, 3) for name, value in line.items()}))
    print(json.dumps({"ratio": round(totals[max(totals)] / totals[min(totals)], 3)}))


def compile_times(config: Decoder, remat: Remat) -> tuple[float, float]:
    """Seconds until initialisation and a gradient step are ready to run, with nothing cached."""

    def loss(weights: Tree, tokens: Array) -> Array:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        rows = Rows(jnp.ones_like(tokens), positions)
        hidden, _ = trunk(config, weights, embed(config, weights, tokens), rows, remat=remat)
        return -jnp.mean(jax.nn.log_softmax(head(config, weights, hidden))[..., 0])

    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(lambda key: parameters.init(specs(config), key)).lower(jax.random.key(0)).compile()
    middle = time.perf_counter()
    tokens = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    jax.jit(jax.value_and_grad(loss)).lower(parameters.abstract(specs(config)), tokens).compile()
    return middle - start, time.perf_counter() - middle


if __name__ == "__main__":
    main()
