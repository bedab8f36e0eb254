# SPDX-License-Identifier: Apache-2.0
"""The number that a worked answer ends in."""

import re
from decimal import Decimal

# Digits in groups of three or in one run, with decimals, or nothing but these. A minus counts where no word, digit or
# bracket stands before it (10-5 ends in 5), and a comma between other digits parts numbers (1,2,3 ends in 3).
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\w)\.[0-9]+"
NUMBER = re.compile(rf"(?:(?<![\w)\]}}])[-\u2212]\$?)?(?:{_DIGITS})")
FRACTION = re.compile(r"([-\u2212])?\\[dt]?frac\{([0-9,]+)\}\{([0-9,]+)\}")
MARK, BOX = "####", "\\boxed{"


def final_number(text: str, strict: bool = False) -> Decimal | None:
    """The number in the last `\\boxed{...}`; else the one behind the last `####`; else, unless `strict`, the last one
    of all. None if there is none."""
    at = text.rfind(BOX)
    if at >= 0:
        return _boxed(text[at + len(BOX) :])
    _, mark, behind = text.rpartition(MARK)
    if mark:
        found = NUMBER.search(behind)
        return found and value(found[0])
    found = None if strict else NUMBER.findall(text)
    return value(found[-1]) if found else None


def value(number: str) -> Decimal:
    """What a number in a text is worth."""
    return Decimal(number.replace(",", "").replace("\u2212", "-").replace("$", ""))


def _boxed(behind: str) -> Decimal | None:
    """The number in a box that opens before the text, and closes where its braces do."""
    depth, end = 1, 0
    while depth and end < len(behind):
        depth += {"{": 1, "}": -1}.get(behind[end], 0)
        end += 1
    inside = behind[:end]
    if found := FRACTION.search(inside):
        over = value(found[3])
        return value((found[1] or "") + found[2]) / over if over else None
    numbers = NUMBER.findall(inside)
    return value(numbers[-1]) if numbers else None
