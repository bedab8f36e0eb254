# SPDX-License-Identifier: Apache-2.0
"""Searches the tunables of kernels on the device at hand and stores the best for each shape.

    python tools/tune_kernels.py --operation decode_attention --implementation pallas_gpu --only 8b

Every choice is held against the default one's result before it counts; what does not compile, or is wrong, is left
out. Only what is faster than the default by more than 2 %, which is noise, is stored, beside what is there in
`jaxpost/kernels/<operation>/tuned/<device>.json`.
"""

import argparse
import json

import jax
import timing
from bench_kernels import off
from kernel_cases import GRIDS, OPERATIONS, Case, cases, grid

from jaxpost.kernels.dispatch import Unsupported
from jaxpost.kernels.tuning import table, trying

CLOSE = 1e-2
NOISE = 0.02


def search(case: Case, implementation: str) -> dict[str, dict[str, object]]:
    """The best values of a shape, under the name that the kernel asked for them by; nothing if the default is best."""
    sets = timing.sets_of(case.make, case.bytes)

    def timed() -> tuple[float, object]:
        call = jax.jit(lambda *arrays: case.call(implementation, *arrays))
        return timing.seconds(call, sets), call(*sets[0])

    with trying(case.operation, implementation, {}) as trial:
        try:
            default, wanted = timed()
        except Unsupported as why:
            print(json.dumps({"shape": case.name, "unsupported": str(why)}), flush=True)
            return {}
    best, chosen, wrong = default, {}, 0
    for values in grid(case.operation, implementation):
        with trying(case.operation, implementation, values):
            try:
                took, found = timed()
            except Exception:  # too much shared memory, sizes that do not divide: no choice for this shape
                wrong += 1
                continue
        if off(found, wanted) > CLOSE:
            wrong += 1
        elif took < best:
            best, chosen = took, values
    told = {"shape": case.name, "default_us": round(1e6 * default, 2), "best_us": round(1e6 * best, 2), **chosen}
    print(json.dumps({**told, "left_out": wrong}), flush=True)
    worth = chosen and best < (1 - NOISE) * default
    return dict.fromkeys(trial.asked, chosen) if worth else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", required=True, choices=OPERATIONS)
    parser.add_argument("--implementation", required=True)
    parser.add_argument("--only", default="", help="only shapes whose name has one of these parts, separated by ;")
    options = parser.parse_args()
    wanted = options.operation, options.implementation
    if wanted not in GRIDS:
        raise SystemExit(
            f"{' '.join(wanted)} has nothing to tune; known: {', '.join(' '.join(name) for name in GRIDS)}"
        )
    path = table(options.operation, jax.devices()[0].device_kind)
    stored = json.loads(path.read_text()) if path.is_file() else {}
    mine = stored.setdefault(options.implementation, {})
    for case in cases(options.operation):
        if any(part in case.name for part in options.only.split(";")):
            mine.update(search(case, options.implementation))
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"    {json.dumps(shape)}: {json.dumps(values)}" for shape, values in shapes.items())
        + "\n  }"
        for name, shapes in stored.items()
    )
    path.write_text(f"{{\n{lines}\n}}\n")
    print(path)


if __name__ == "__main__":
    main()
