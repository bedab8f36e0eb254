# SPDX-License-Identifier: Apache-2.0
"""Places that every example reserves for a prompt or a prefix, which is learned and not written.

They are ids below zero among an example's tokens: -1 - j is the j-th of them. They take a position each, are never
trained as targets, and are never cut.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from jaxpost.faults import Fault

T = TypeVar("T")
Place = Literal["before", "between"]


@dataclass(frozen=True)
class Virtual:
    """`count` places in front of an example, its bos included; or between its prompt and what answers it, the infix of
    Li and Liang 2021 (https://arxiv.org/abs/2101.00190), in a conversation before the assistant speaks first."""

    count: int = 0
    place: Place = "before"

    @property
    def ids(self) -> np.ndarray:
        """The reserved ids in their order, int32[count]."""
        return -1 - np.arange(self.count, dtype=np.int32)

    @property
    def between(self) -> bool:
        """Whether they stand where an example's answer begins, which must be found then."""
        return self.count > 0 and self.place == "between"


NONE = Virtual()


def with_virtual(tokenizer: T, virtual: Virtual) -> T:
    """The tokenizer with places reserved in every example that it makes. The one given stays as it is."""
    made: Any = copy.copy(tokenizer)
    made.virtual = virtual
    return made


def newest(ids: Sequence[int] | np.ndarray, room: int, bos: int | None = None) -> np.ndarray:
    """Which tokens stay, as indices, where there is only so much room: the reserved places, a bos that begins the text
    if one is given, and of the rest the last."""
    ids = np.asarray(ids, np.int32)
    reserved, text = np.flatnonzero(ids < 0), np.flatnonzero(ids >= 0)
    if (free := room - len(reserved)) < 0:
        raise Fault(
            f"a prompt longer than the context: {len(reserved)} places are reserved for what was learned, and there is "
            f"room for {room} tokens"
        )
    stays = text[max(0, len(text) - free) :]
    if len(stays) and ids[text[0]] == bos:
        stays = np.append(text[0], stays[1:])
    return np.sort(np.append(reserved, stays))
