# SPDX-License-Identifier: Apache-2.0
"""The stretches of text that an example is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an example's text, and whether the model is to learn to write it.

    `opens`: a sampler's prompt ends where the part begins, so that no token may reach over its start. `whole`: a
    model's own chat template wrote it, special tokens and all, so that nothing is put before or after it. `unlearnt`
    turns of the assistant, which begin in it or behind it, were to be trained and are not, as the template does not
    write them as they are spoken.
    """

    text: str
    trained: bool
    opens: bool = field(default=False, compare=False)
    whole: bool = field(default=False, compare=False)
    unlearnt: int = field(default=0, compare=False)


def joined(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts)


class Rendered(str):
    """A prompt that a chat template worded. `cuts` are the characters at which the assistant took its turns, over which
    no token reaches; `whole` as of its parts: no special token is put before it."""

    cuts: tuple[int, ...]
    whole: bool

    def __new__(cls, text: str, cuts: Sequence[int] = (), whole: bool = False) -> "Rendered":
        made = super().__new__(cls, text)
        made.cuts, made.whole = tuple(cuts), whole
        return made


def prompt_of(parts: Sequence[Part]) -> str:
    """Parts as a sampler's prompt."""
    whole = any(part.whole for part in parts)
    starts = [len(joined(parts[:i])) for i, part in enumerate(parts) if part.opens]
    return Rendered(joined(parts), starts, whole) if whole or starts else joined(parts)
