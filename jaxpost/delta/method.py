# SPDX-License-Identifier: Apache-2.0
"""What a method of tuning says beyond the specs of its edits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optax

from jaxpost.arrays import Array, Int, Key, Tree
from jaxpost.delta.bind import Delta

Place = Literal["before", "between"]
"""Where an example reserves its places: before it, or between its prompt and what answers it."""


@dataclass(frozen=True)
class Given:
    """What a delta may start from: the base's weights (arrays or quantised), a key, and where there are any, the
    tokenizer's way from text to ids and the way to the delta of another run by its name.

    `embed` gives what the blocks read for some ids, `[n, d]`, and `attended` the keys and values `[l, n, k, h]` that
    each block (by its path) has for them, as attention meets them. `specs` are those that the delta was made from.
    """

    base: Tree
    key: Key
    encode: Callable[[str], list[int]] | None = None
    read: Callable[[str], Delta] | None = None
    embed: Callable[[Int[Array, "n"]], Array] | None = None
    attended: Callable[[Int[Array, "n"]], Mapping[str, tuple[Array, Array]]] | None = None
    specs: Tree = None


class Method:
    """From the specs of a model to a delta of specs; implementations are frozen dataclasses, which configs hold.

    What the defaults below say is true of most: every value starts from its spec alone, no places are reserved, the
    optimiser is the run's, and there is nothing to tell. A run asks for these and knows no method.
    """

    place: Place = "before"

    def __call__(self, specs: Tree) -> dict[str, Any]:
        """The delta of specs. Raises `Fault` where the model has no place for it."""
        raise NotImplementedError

    @property
    def virtual(self) -> int:
        """How many places every example reserves for a prompt or prefix."""
        return 0

    @property
    def reads(self) -> tuple[str, ...]:
        """The runs whose deltas `start` asks for."""
        return ()

    def start(self, delta: Delta, given: Given) -> Delta:
        """The delta with the values that depend on more than a key. It is traced."""
        return delta

    def optimiser(self, inner: optax.GradientTransformation, specs: Tree, steps: int) -> optax.GradientTransformation:
        """The run's optimiser, or one around it. `specs` is the trainable half of the delta of specs."""
        return inner

    def within(self, run: Path) -> "Method":
        """Itself as recorded in a run that lies in that directory now, where the run's own files are that it names."""
        return self

    def facts(self, delta: Delta) -> Mapping[str, str]:
        """What there is to say of a delta that has been trained."""
        return {}
