# SPDX-License-Identifier: Apache-2.0
"""Where the time of a compiled program goes, operation by operation, as the device's own trace has it.

with op_times.traced() as found:
    step(...)
print(op_times.table(found, repeats=1))
"""

import contextlib
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax


@dataclass
class Times:
    """Per kernel, which XLA names after the operation that it stands for: nanoseconds, and how often it ran; the time
    from the first to the last; and how much of it any of them ran."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    span: float = 0.0
    busy: float = 0.0


@contextlib.contextmanager
def traced() -> Iterator[Times]:
    """Fills in the times of what ran on the first device inside; whoever runs it waits for it before leaving."""
    found = Times()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield found
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_serialized_xspace(path.read_bytes())
    plane = next((p for p in data.planes if re.search(r"/device:(GPU|TPU):0", p.name)), None)
    if plane is None:
        raise SystemExit(f"the trace has no device plane, only {[p.name for p in data.planes]}")
    events = [e for line in plane.lines if "Stream" in line.name or line.name == "XLA Ops" for e in line.events]
    first = last = min((event.start_ns for event in events), default=0.0)
    for event in sorted(events, key=lambda event: event.start_ns):
        found.spent[event.name] += event.duration_ns
        found.count[event.name] += 1
        end = event.start_ns + event.duration_ns
        found.busy += max(end - max(event.start_ns, last), 0.0)
        last = max(last, end)
    found.span = last - first


def table(found: Times, repeats: int, most: int = 40) -> str:
    """The most expensive operations, milliseconds for each of the repeats."""
    total = sum(found.spent.values())
    busy, span = (time / repeats / 1e6 for time in (found.busy, found.span))
    rows = [f"busy {busy:.3f} ms of {span:.3f}, {len(found.spent)} operations,"
            f" {sum(found.count.values()) / repeats:.0f} launches"]  # fmt: skip
    for name, spent in sorted(found.spent.items(), key=lambda item: -item[1])[:most]:
        share = f"{spent / repeats / 1e6:9.3f} ms {100 * spent / total:5.1f} %"
        rows.append(f"{share} {found.count[name] / repeats:6.0f} x  {name}")
    return "\n".join(rows)
