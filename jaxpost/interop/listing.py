# SPDX-License-Identifier: Apache-2.0
"""Long lists of names in one sentence."""

import re
from collections.abc import Mapping, Sequence

_NUMBER = re.compile(r"(?<=layers\.)\d+(?=\.)|(?<=\.h\.)\d+(?=\.)")


def faults_in_words(faults: Mapping[str, Sequence[str]]) -> str:
    """How many names there are of each kind, and which."""
    return "; ".join(f"{len(found)} {what}: {listed(found)}" for what, found in faults.items() if found)


def listed(items: Sequence[str]) -> str:
    """All of them, those that differ in their layer's number only as one: `layers.{0-3,7}.up`."""
    groups: dict[tuple[str, str], list[int]] = {}
    for item in items:
        found = _NUMBER.search(item)
        before, number, after = (item[: found.start()], found[0], item[found.end() :]) if found else (item, "-1", "")
        groups.setdefault((before, after), []).append(int(number))
    return ", ".join(before + _ranges(numbers) + after for (before, after), numbers in groups.items())


def _ranges(numbers: list[int]) -> str:
    """`7`, `{0-3,7}`; nothing for what has no number."""
    if numbers == [-1]:
        return ""
    numbers = sorted(numbers)
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    found = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return found if len(numbers) == 1 else f"{{{found}}}"
