# SPDX-License-Identifier: Apache-2.0
"""What the text of a compiled program says: the TPU compiler's own estimate of cycles, Pallas kernels, collectives.

Loops are counted as often as they run, where their condition compares a counter with a constant (those of scans do).
The compiler estimates no cycles for Pallas kernels, nor for waiting on collectives: sums compare programs, they are no
times.
"""

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}

_HEAD = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(")
_WITHIN = re.compile(r"\b(calls|to_apply|body|true_computation|false_computation)=%?([^\s,)}]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


@dataclass
class Said:
    """Of one run of the program on one chip: estimated cycles, in all and by the operation's name in the source; how
    often each Pallas kernel runs; collectives by kind, how often and the MiB that their results hold."""

    cycles: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)
    collectives: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0.0]))
    open_loops: int = 0


def read(text: str) -> Said:
    """What `compiled.as_text()` says. `open_loops` counts loops whose length is not known; they count once."""
    parts, entry = _computations(text)
    said = Said()
    seen: set[str] = set()
    pending = [(entry, 1, False)]
    while pending:
        name, times, fused = pending.pop()
        for line in parts.get(name, ()):
            pending += _take(line, times, fused, parts, said, seen)
    return said


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the one where the program begins."""
    parts: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name:
            parts[name].append(line)
    return parts, entry


def _take(
    line: str, times: int, fused: bool, parts: dict[str, list[str]], said: Said, seen: set[str]
) -> list[tuple[str, int, bool]]:
    """Counts one operation, and says which computations it runs, how often. What is fused has its cycles at the
    fusion; but collectives that run beside one stand within."""
    operation = _OPERATION.match(line)
    if operation is None:
        return []
    name, result, kind = operation.groups()
    if (cycles := _CYCLES.search(line)) and not fused:
        said.cycles += times * int(cycles[1])
        where = re.search(r'op_name="([^"]*)"', line)
        said.by_name[where[1] if where else name] += times * int(cycles[1])
    if kind == "custom-call" and re.search('custom_call_target="(tpu_custom_call|mosaic_gpu)', line):
        said.kernels[re.sub(r"[.0-9]+$", "", name)] += times
    if (base := kind.removesuffix("-start")) in COLLECTIVES:
        # One that runs beside several fusions stands in each of them, under the same number.
        channel = re.search(r"channel_id=(\d+)", line)
        if channel is None or channel[1] not in seen:
            seen.add(channel[1] if channel else name)
            said.collectives[base][0] += times
            said.collectives[base][1] += times * _size(result if base == kind else _last(result)) / 2**20
    if kind == "while":
        length = _trips(line, parts)
        said.open_loops += length is None
        times *= length or 1
    inner = [called for _, called in _WITHIN.findall(line)]
    for branches in _BRANCHES.findall(line):
        inner += [branch.strip().lstrip("%") for branch in branches.split(",")]
    return [(called, times, fused or kind == "fusion") for called in inner]


def _trips(line: str, parts: dict[str, list[str]]) -> int | None:
    """How often a loop runs: what its counter, which starts at zero, is compared with."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = re.search(r"condition=%?([^\s,)}]+)", line)
    lines = parts.get(condition[1], []) if condition else []
    constants = {
        found[1]: int(found[2]) for at in lines if (found := re.search(r"%(\S+) = s32\S* constant\((\d+)\)", at))
    }
    for at in lines:
        if "direction=LT" in at and (compared := re.search(r"compare\([^,]*, %([^)]+)\)", at)):
            return constants.get(compared[1])
    return None


def _size(shapes: str) -> int:
    """The bytes of the arrays that a type speaks of."""
    found = _ARRAY.findall(shapes)
    return sum(BYTES.get(kind, 0) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in found)


def _last(result: str) -> str:
    """Of what an operation that starts another gives, (operands, result, ...), the result."""
    arrays = _ARRAY.findall(result)
    kind, sizes = arrays[1] if len(arrays) > 1 else arrays[0]
    return f"{kind}[{sizes}]"
