# SPDX-License-Identifier: Apache-2.0
"""Rewards: functions that score a finished answer. Built-in ones by name, anybody's own as `path.py:function`."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, SupportsFloat

from jaxpost.data.nano import worlds
from jaxpost.evals import text as judged
from jaxpost.evals.numbers import final_number
from jaxpost.evals.written import written
from jaxpost.faults import Fault, nearest


@dataclass(frozen=True)
class Answered:
    """An answer and all that a reward may want to know: the prompt, the row that it came from (with whatever fields it
    has), how many tokens it has (the end token is none of them), and why it stopped."""

    prompt: str
    text: str
    row: Mapping[str, Any]
    tokens: int
    reason: Literal["end", "stop", "length"]


Reward = Callable[[Answered], float | None]
"""An answer's score, higher being better; None if it does not apply to this row."""


def exact(answered: Answered, field: str = "answer") -> float | None:
    """1 if the answer is the row's, letter case and white space aside (`evals.text.exact`), else 0."""
    target = answered.row.get(field)
    return None if target is None else judged.exact(answered.text, str(target))


def number(answered: Answered, field: str = "answer", strict: bool = False) -> float | None:
    """1 if the answer ends in the right number, else 0: GSM8K's checker (Cobbe et al. 2021,
    https://arxiv.org/abs/2110.14168), for references that end in `#### 42`, `\\boxed{42}` or simply in a number.

    The number of an answer is what it marks so itself, or else the last one in it; `strict` wants the mark. Numbers are
    compared as numbers: 1,000 is 1000.0, and a sign of money or per cent is not part of them.
    """
    target = answered.row.get(field)
    if target is None:
        return None
    wanted = final_number(str(target))
    if wanted is None:
        raise Fault(f"reward number: the row's {field!r} holds no number ({str(target)[-40:]!r}); name another field")
    return float(final_number(answered.text, strict) == wanted)


def pattern(answered: Answered, regex: re.Pattern[str]) -> float:
    """1 if the regular expression is found in the answer, else 0; write `^` and `$` where it has to be all of it."""
    return float(regex.search(answered.text) is not None)


def length(answered: Answered, target: int) -> float:
    """1 for an answer of `target` tokens, falling to 0 at none and at twice as many."""
    return max(0.0, 1.0 - abs(answered.tokens - target) / target)


def overlong(answered: Answered, most: int, margin: int) -> float:
    """0 up to `most - margin` tokens, then falling to -1 at `most` (DAPO's soft punishment, Yu et al. 2025,
    https://arxiv.org/abs/2503.14476, eq. 13)."""
    return -min(1.0, max(0.0, (answered.tokens - (most - margin)) / margin))


def ended(answered: Answered) -> float:
    """1 if the model stopped by itself, 0 if it was cut off."""
    return float(answered.reason != "length")


def contains(answered: Answered, words: tuple[str, ...]) -> float:
    """The share of these words (or phrases) that stand in the answer, in whatever letter case."""
    return sum(_has(answered.text, word) for word in words) / len(words)


def avoids(answered: Answered, words: tuple[str, ...]) -> float:
    """1 if none of these words (or phrases) stands in the answer, else 0."""
    return float(not any(_has(answered.text, word) for word in words))


def choice(answered: Answered, field: str = "answer", options: str = "options") -> float | None:
    """1 if the answer names the right one of the row's `options` and no other, else 0. Of options that are part of each
    other, such as `red` and `dark red`, the longer one is named."""
    target, among = answered.row.get(field), answered.row.get(options)
    if target is None or among is None:
        return None
    left, named = answered.text, set()
    for option in sorted(map(str, among), key=len, reverse=True):
        left, found = re.subn(_bounded(option), " ", left, flags=re.IGNORECASE)
        named |= {judged.normalise(option)} if found else set()
    return float(named == {judged.normalise(str(target))})


def _has(text: str, word: str) -> bool:
    return re.search(_bounded(word), text, re.IGNORECASE) is not None


def _bounded(word: str) -> str:
    """The word where it is no part of another one."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


class Scored(NamedTuple):
    """What a reward gave: a finite number, or None where it does not apply; or what is wrong with it."""

    score: float | None
    wrong: Literal["", "NaN", "infinite", "no number"] = ""


def checked(value: Any) -> Scored:
    """What a reward returned, told apart; whether something wrong stops the run or is counted is the caller's choice.
    Truth values are numbers, arrays of one element too; texts are none, whatever stands in them."""
    if value is None:
        return Scored(None)
    if isinstance(value, (str, bytes)) or not isinstance(value, SupportsFloat):
        return Scored(None, "no number")
    try:
        score = float(value)
    except OverflowError:
        return Scored(None, "infinite")
    except (TypeError, ValueError):
        return Scored(None, "no number")
    if math.isnan(score):
        return Scored(None, "NaN")
    return Scored(None, "infinite") if math.isinf(score) else Scored(score)


def _measured(measure: worlds.Measure, answered: Answered) -> float | None:
    return measure(answered.text, answered.row)


def _plain(reward: Reward) -> Callable[[str, str], Reward]:
    """A reward without options."""

    def make(spec: str, options: str) -> Reward:
        if options:
            raise Fault(f"reward {spec!r}: {spec.partition(':')[0]} takes no options; leave out {':' + options!r}")
        return reward

    return make


def _field(reward: Callable[..., float | None]) -> Callable[[str, str], Reward]:
    return lambda spec, options: partial(reward, field=options) if options else reward


def _number(spec: str, options: str) -> Reward:
    field, _, strict = options.partition(",")
    strict, field = ("strict", "") if field == "strict" and not strict else (strict, field)
    if strict not in ("", "strict"):
        raise Fault(f"reward {spec!r}: {strict!r} is no option; write number, number:FIELD or number:FIELD,strict")
    return partial(number, field=field or "answer", strict=bool(strict))


def _pattern(spec: str, options: str) -> Reward:
    try:
        regex = re.compile(options)
    except re.error as error:
        raise Fault(f"reward {spec!r}: no regular expression ({error})") from None
    if not options:
        raise Fault(f"reward {spec!r}: an empty pattern is found in every answer; write pattern:REGEX")
    return partial(pattern, regex=regex)


def _words(reward: Callable[..., float]) -> Callable[[str, str], Reward]:
    def make(spec: str, options: str) -> Reward:
        words = tuple(word.strip() for word in options.split(","))
        if not all(words):
            raise Fault(
                f"reward {spec!r} names an empty word; write words with a comma between them, as avoids:damn,hell"
            )
        return partial(reward, words=words)

    return make


def _counts(reward: Callable[..., float], *names: str) -> Callable[[str, str], Reward]:
    """A reward whose options are whole numbers above 0."""

    def make(spec: str, options: str) -> Reward:
        given = options.split(",")
        if len(given) != len(names) or not all(re.fullmatch("0*[1-9][0-9]{0,8}", one.strip()) for one in given):
            form = f"{spec.partition(':')[0]}:{','.join(names).upper()}"
            raise Fault(f"reward {spec!r}: write {form}, whole numbers of tokens above 0")
        counts = dict(zip(names, map(int, given), strict=True))
        if counts.get("margin", 0) > counts.get("most", 0):
            raise Fault(f"reward {spec!r}: the margin is part of the most tokens, so it cannot be larger")
        return partial(reward, **counts)

    return make


BUILT_IN: Mapping[str, Callable[[str, str], Reward]] = {
    "exact": _field(exact),
    "number": _number,
    "pattern": _pattern,
    "length": _counts(length, "target"),
    "overlong": _counts(overlong, "most", "margin"),
    "ended": _plain(ended),
    "contains": _words(contains),
    "avoids": _words(avoids),
    "choice": _field(choice),
    **{name: _plain(partial(_measured, measure)) for name, measure in worlds.MEASURES.items()},
}


def named(spec: str) -> Reward:
    """The reward of that name: a built-in one, with its options behind a colon, or a function of a file.

    `exact`, `exact:FIELD`, `number`, `number:FIELD,strict`, `choice`, `pattern:REGEX`, `length:TOKENS`,
    `overlong:MOST,MARGIN`, `ended`, `contains:WORD,WORD`, `avoids:WORD,WORD`, what is true in the built-in worlds
    (`reviews_gold`, `manners_kind`, ...), or `path.py:function`.
    """
    name, _, options = spec.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name](spec, options)
    path, _, function = spec.rpartition(":")
    if spec.endswith(".py"):
        raise Fault(f"reward {spec!r} names a file and no function of it; write {spec}:FUNCTION")
    if not path.endswith(".py"):
        raise Fault(f"no reward is called {name!r} (one's own is FILE.py:FUNCTION); {nearest(name, BUILT_IN)}")
    return written(Path(path), function)
