# SPDX-License-Identifier: Apache-2.0
"""How fast each implementation of each kernel operation is, against what the device allows.

    python tools/bench_kernels.py --operation decode_attention,quant_matmul --only 8b

First the device's own ceilings are measured: a large copy and a large matrix product. The floor of a shape is the
longer of its bytes and its operations at those. Before an implementation is timed it is compared with the reference in
float32 on the same arrays. One JSON line a shape and implementation; what one cannot serve says why.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import timing
from kernel_cases import OPERATIONS, Case, cases

from jaxpost.kernels.dispatch import Unsupported


def off(found: object, wanted: object) -> float:
    """The largest distance of two results, part by part, as a share of each part's norm."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    norm = np.linalg.norm
    wide = ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
    return float(max(norm(a - b) / max(norm(b), 1e-30) for a, b in wide))


def exact(case: Case, arrays: tuple[object, ...]) -> object:
    """The reference of the same numbers in float32."""

    def wide(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

    with jax.default_matmul_precision("highest"):
        return jax.block_until_ready(jax.jit(lambda *x: case.call("reference", *x))(*jax.tree.map(wide, arrays)))


def measure(case: Case, rates: tuple[float, float], check: bool) -> None:
    floor = max(case.bytes / rates[0], case.flops / rates[1])
    sets = timing.sets_of(case.make, case.bytes)
    wanted = exact(case, sets[0]) if check else None
    for name in case.implementations:
        line: dict[str, object] = {"operation": case.operation, "shape": case.name, "implementation": name}
        try:
            call = jax.jit(lambda *arrays, name=name: case.call(name, *arrays))
            if check:
                line["off"] = round(off(call(*sets[0]), wanted), 6)
            took = timing.seconds(call, sets)
            line |= {"us": round(1e6 * took, 2), "floor_us": round(1e6 * floor, 2)}
            line["percent_of_floor"] = round(100 * floor / took, 1)
        except Unsupported as why:
            line["unsupported"] = str(why)
        except Exception as error:  # one that runs out of memory must not hide the others
            line["error"] = str(error).splitlines()[0][:200]
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", default=",".join(OPERATIONS), help="which, separated by commas")
    parser.add_argument("--only", default="", help="only shapes whose name has one of these parts, separated by ;")
    parser.add_argument("--unchecked", action="store_true", help="do not compare with the reference first")
    options = parser.parse_args()
    rates = timing.ceilings()
    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    print(json.dumps({**device, "copy_TB_s": round(rates[0] / 1e12, 3), "matmul_TFLOP_s": round(rates[1] / 1e12, 1)}))
    for operation in options.operation.split(","):
        for case in cases(operation):
            if any(part in case.name for part in options.only.split(";")):
                measure(case, rates, not options.unchecked)


if __name__ == "__main__":
    main()
