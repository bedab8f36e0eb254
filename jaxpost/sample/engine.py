# SPDX-License-Identifier: Apache-2.0
"""Who sits in which row of a decoding batch: rows that have ended are given to prompts that wait."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import numpy as np

from jaxpost.arrays import Array, Tree
from jaxpost.delta.bank import Bank
from jaxpost.kernels.decode_attention import KV, bytes_per_entry
from jaxpost.models.decoder import Decoder
from jaxpost.sample.apart import layers_apart, weights_apart
from jaxpost.sample.decode import Decoding, Prefilled, Seats, begin, decode, place, prefill
from jaxpost.sample.logits import Sampling
from jaxpost.shard import free, platform

CHUNK = 16  # tokens between two looks at what has been written
MOST = 256  # rows that are written at once, unless asked for more
READ = 2**15  # tokens of prompts that are read at once: their activations are a few GiB for models of some billions
Stop = Callable[[list[int]], int | None]


@dataclass
class Row:
    """One completion on its way; `reason` is empty until it has ended. `asked` counts the tokens that the device was
    asked for."""

    prompt: int
    sample: int
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    reason: Literal["", "end", "stop", "length"] = ""
    end: int | None = None
    asked: int = 0

    def take(self, tokens: list[int], log_probs: list[float], most: int, ends: Sequence[int], stop: Stop | None):
        """The next tokens that were drawn, as far as they count."""
        room = most - len(self.tokens)
        end = next((i for i, token in enumerate(tokens[:room]) if token in ends), None)
        self.tokens += tokens[: room if end is None else end]
        self.log_probs += log_probs[: room if end is None else end + 1]
        if stop is not None and (cut := stop(self.tokens)) is not None:
            self.tokens, self.log_probs, self.reason = self.tokens[:cut], self.log_probs[:cut], "stop"
        elif end is not None:
            self.reason, self.end = "end", tokens[end]
        elif len(self.tokens) == most:
            self.reason = "length"


class Engine:
    """Writes the rows' completions, `slots` at a time.

    Prompts are read in groups of similar length, and each group once, however many rows want it and whenever they come
    to sit. While rows wait for a place the host looks at each chunk before it asks for the next one; when none does it
    asks ahead, so that the device never waits. On GPUs with room for it, or where asked for, tokens are written by a
    copy of the weights with all layers `apart`.
    """

    def __init__(
        self,
        config: Decoder,
        weights: Tree,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        ends: Sequence[int],
        stop: Stop | None,
        samples: int,
        slots: int | None,
        apart: bool | None = None,
    ):
        self._config, self._weights, self._prompts, self._samples = config, weights, prompts, samples
        self._most, self._ends, self._stop = sampling.max_new, tuple(ends), stop
        self._end_ids = np.array(self._ends, np.int32)
        # Neither is part of the programs, which must not depend on them.
        self._sampling, self._seed = replace(sampling, max_new=1, seed=0), jax.random.key(sampling.seed)
        self.rows = [Row(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
        self._unread = deque(sorted(range(len(prompts)), key=lambda number: -len(prompts[number])))
        self._read: deque[tuple[Prefilled, int, Row]] = deque()
        self._writer, self._apart = config, weights
        if _worth_a_copy(weights) if apart is None else apart:
            self._writer, self._apart = layers_apart(config), _weights_apart(config, weights)
        size = rounded(max(map(len, prompts))) + rounded(sampling.max_new)
        count = min(power(len(self.rows)), slots or _affordable(config, size, sampling.kv))
        self._seats: list[Row | None] = [None] * count
        self._state: Decoding = _begin(self._writer, count, size, sampling.kv)

    def run(self) -> Iterator[None]:
        """Comes back whenever something more has been written, and ends when every row has ended."""
        asked: deque[tuple[Array, Array, list[tuple[int, Row]]]] = deque()
        while not all(row.reason for row in self.rows):
            self._fill()
            ahead = 1 if self._read or self._unread else 2
            while len(asked) < ahead and (rows := self._writing()):
                asked.append((*self._ask(rows), rows))
            self._hear(*asked.popleft())
            yield

    def _fill(self) -> None:
        free = deque(i for i, row in enumerate(self._seats) if row is None or row.reason)
        while free and (self._read or self._unread):
            if not self._read:
                self._read_some(-(-len(free) // self._samples))
            group, sitting = self._read[0][0], []
            while free and self._read and self._read[0][0] is group:
                _, source, row = self._read.popleft()
                self._seats[free[0]] = row
                sitting.append((source, free.popleft(), row.prompt, row.sample, self._most))
            sitting += [sitting[-1]] * (power(len(sitting), 2) - len(sitting))
            seats = Seats(*np.array(sitting, np.int32).T)
            self._state = _place(self._state, group, seats, self._seed)

    def _read_some(self, wanted: int) -> None:
        """Reads the next prompts, the longest that are left, in one of few shapes."""
        width = rounded(len(self._prompts[self._unread[0]]))
        count = group(min(wanted, len(self._unread)))
        while count > 1 and count * width > READ:
            count //= 4
        numbers = [self._unread.popleft() for _ in range(min(count, wanted, len(self._unread)))]
        tokens, lengths = np.zeros((count, width), np.int32), np.ones(count, np.int32)
        for i, number in enumerate(numbers):
            lengths[i] = len(self._prompts[number])
            tokens[i, : lengths[i]] = self._prompts[number]
        own = _chosen(self._weights, numbers + [numbers[-1]] * (count - len(numbers)))
        read = _prefill(self._config, own, tokens, lengths, self._state.form)
        for source, number in enumerate(numbers):
            first = number * self._samples
            self._read += [(read, source, row) for row in self.rows[first : first + self._samples]]

    def _writing(self) -> list[tuple[int, Row]]:
        """The rows that want more than they have been asked for."""
        sitting = [(i, row) for i, row in enumerate(self._seats) if row is not None]
        return [(i, row) for i, row in sitting if not row.reason and row.asked < self._most]

    def _ask(self, rows: list[tuple[int, Row]]) -> tuple[Array, Array]:
        live, numbers = np.zeros(len(self._seats), bool), [0] * len(self._seats)
        for i, row in rows:
            live[i], numbers[i] = True, row.prompt
            row.asked += CHUNK
        own = _chosen(self._apart, numbers)
        self._state, tokens, log_probs = _decode(
            self._writer, own, self._state, live, self._sampling, self._end_ids, CHUNK
        )
        return tokens, log_probs

    def _hear(self, tokens: Array, log_probs: Array, rows: list[tuple[int, Row]]) -> None:
        drawn, scored = (x.tolist() for x in jax.device_get((tokens, log_probs)))
        for i, row in rows:
            if not row.reason:  # else it ended within the chunk before this one
                row.take(drawn[i], scored[i], self._most, self._ends, self._stop)


def rounded(n: int) -> int:
    """Up to an eighth of the next power of two, and to 16: so that sizes are few, and little is spare."""
    step = max(16, power(n) // 8)
    return -(-n // step) * step


def power(n: int, bits: int = 1) -> int:
    """The next power of two, or of four by two bits."""
    return 1 << -(-(n - 1).bit_length() // bits) * bits


def group(count: int) -> int:
    """Of how many prompts a group is read that should have so many: a power of four."""
    above = power(count, 2)
    return above if 2 * count > above else above // 4


def _worth_a_copy(weights: Tree) -> bool:
    """Whether a copy with layers apart is read faster, and takes no more than half of the memory that is free."""
    room = free(jax.local_devices()[:1])
    return platform() == "gpu" and (
        room is None or sum(leaf.nbytes for leaf in jax.tree.leaves(weights["layers"])) <= room // 2
    )


def _affordable(config: Decoder, size: int, kv: KV) -> int:
    """Rows whose cache takes no more than half of the memory that is free, as far as it is known; at most `MOST`."""
    row = 2 * config.layers * config.kv_heads * size * bytes_per_entry(kv, config.head_size, config.dtype)
    room, count = free(jax.local_devices()[:1]), MOST
    while room is not None and count > 1 and count * row > room // 2:
        count //= 2
    return count


def _chosen(weights: Tree, numbers: Sequence[int]) -> Tree:
    """Weights bound to banks, for these examples of the batch that the banks' entries were chosen for."""

    def own(node: Any) -> Any:
        if not isinstance(node, Bank) or node.rows is None:
            return node
        rows = np.asarray(node.rows)
        return node.replace(rows=rows[..., numbers])  # pyright: ignore[reportAttributeAccessIssue]

    return jax.tree.map(own, weights, is_leaf=lambda node: isinstance(node, Bank))


_begin: Callable[..., Decoding] = jax.jit(begin, static_argnums=(0, 1, 2, 3))
_prefill: Callable[..., Prefilled] = jax.jit(prefill, static_argnums=(0, 4))
_weights_apart: Callable[..., Tree] = jax.jit(weights_apart, static_argnums=0)
_place: Callable[..., Decoding] = jax.jit(place, donate_argnums=0)
_decode: Callable[..., Any] = jax.jit(decode, static_argnums=(0, 4, 6), donate_argnums=2)
