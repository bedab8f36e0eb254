# SPDX-License-Identifier: Apache-2.0
"""From stored tensors to arrays on devices, without the host ever holding more than a tensor a reader above those.

A parameter's shard is what one or more devices of this process hold of it. On a CPU, where host memory is device
memory, readers write each matrix into the shard's own buffer, which then becomes the array without a copy. On an
accelerator, a matrix at a time is put into place in a stacked array that already lies there.
"""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxpost.arrays import Array
from jaxpost.interop.bitsandbytes import Packed
from jaxpost.interop.names import Slot, copy, selected
from jaxpost.interop.packing import Packing
from jaxpost.interop.weights import Tensor
from jaxpost.params import ParamSpec
from jaxpost.quant import QArray

READERS = min(8, 2 * (os.cpu_count() or 1))
STRIP = 4 * 2**20  # bytes that a reader asks for at once
_ALIGNED = 64  # bytes; what XLA asks of memory that it is to use as it lies

Span = slice | np.ndarray
"""Which rows (or columns) of a matrix: those between two, or those of given numbers in rising order."""

Report = Callable[[int, int], None]
"""Called with how many bytes of the checkpoint have been placed, and of how many."""


def placed(
    tensors: Mapping[str, Tensor],
    slots: Sequence[Slot],
    specs: Mapping[str, ParamSpec],
    places: Mapping[str, Any],
    report: Report | None = None,
    readers: int = READERS,
    forms: Mapping[str, QArray] | None = None,
    packed: Mapping[str, Packed] | None = None,
) -> dict[str, Any]:
    """All parameters by path, each on the devices that its place (a sharding; `None`: the default device) names.

    Matrices are taken in the order of `slots` and put into place in it too; a process reads only those rows that its
    devices hold, and of columns little more. Parameters among `forms` (specs of quantised weights) are quantised on the
    way; `packed` are the tensors, by name, that lie in their form already.
    """
    forms, packed = forms or {}, packed or {}
    packings = {path: Packing(specs[path], form, places[path]) for path, form in forms.items()}
    shards = {path: _shards(spec, places[path]) for path, spec in specs.items() if path not in packings}
    tasks: list[tuple[Slot, Callable[[], list[Callable[[], None]]]]] = []
    for slot in slots:
        tensor = tensors[slot.name]
        if packing := packings.get(slot.path):
            tasks.append((slot, partial(_read_packed, tensor, slot, packing, packed.get(slot.name))))
        elif held := [s for s in shards[slot.path] if s.holds(slot.index)]:
            tasks.append((slot, partial(_read, tensor, slot, slot.index, held)))
    sizes = [tensors[s.name].bytes * s.outer * max(s.inner, 1) // math.prod(tensors[s.name].shape) for s, _ in tasks]
    done, total = 0, sum(sizes)
    with ThreadPoolExecutor(readers, "load") as pool:
        waiting: deque[tuple[int, Future]] = deque()
        upcoming = iter(zip(sizes, tasks, strict=True))

        def submit() -> None:
            for size, (_, task) in upcoming:
                waiting.append((size, pool.submit(task)))
                return

        try:
            for _ in range(readers):
                submit()
            while waiting:
                size, future = waiting.popleft()
                for put in future.result():
                    put()
                del future
                submit()
                done += size
                if report:
                    report(done, total)
        finally:
            for _, future in waiting:
                future.cancel()
    made = {path: _whole(specs[path], places[path], shards.pop(path)) for path in list(shards)}
    return made | {path: packing.finish() for path, packing in packings.items()}


class _Shard:
    """What some devices hold of a parameter: `index` of its axes."""

    def __init__(self, spec: ParamSpec, index: tuple[slice, ...], devices: Sequence[Any]):
        self.spec, self.devices = spec, devices
        self.shape = tuple(len(range(size)[cut]) for size, cut in zip(spec.shape, index, strict=True))
        lead, inner = len(spec.groups[0]), len(spec.groups[1])
        self.lead = [range(size)[cut] for size, cut in zip(spec.sizes(0), index[:lead], strict=True)]
        self.inner = selected(spec.sizes(1), index[lead : lead + inner]) if inner else slice(0, 1)
        self.outer = selected(spec.sizes(2), index[lead + inner :])
        # Pages of an empty buffer are taken as they are written: untouched it costs nothing.
        self.buffer = aligned(self.shape, spec.dtype) if _uses_host_memory(devices[0]) else None
        self.arrays: dict[Any, Array] = {}

    def holds(self, index: tuple[int, ...]) -> bool:
        return all(at in held for at, held in zip(index, self.lead, strict=True))

    def target(self, index: tuple[int, ...]) -> tuple[np.ndarray, Callable[[], None]]:
        """Where to write the matrix of that index, `[inner, outer]`, and what to call when it is written."""
        at = tuple(held.index(i) for i, held in zip(index, self.lead, strict=True))
        if self.buffer is not None:
            return self._matrix(self.buffer[at]), lambda: None
        block = aligned(self.shape[len(at) :], self.spec.dtype)
        return self._matrix(block), partial(self._put, block, at)

    def _matrix(self, block: np.ndarray) -> np.ndarray:
        return block.reshape(_length(self.inner), _length(self.outer))

    def _put(self, block: np.ndarray, at: tuple[int, ...]) -> None:
        for device in self.devices:
            with _alone(device):
                moved = jax.device_put(block, device)
                if at:
                    whole = self.arrays.get(device)
                    whole = jnp.zeros(self.shape, self.spec.dtype, device=device) if whole is None else whole
                    moved = _written(whole, moved, np.array(at, np.int32))
                # Waits: a copy under way would keep its source on the host.
                self.arrays[device] = moved.block_until_ready()

    def finish(self) -> list[Array]:
        if self.buffer is not None:
            buffer, self.buffer = self.buffer, None
            return [jax.device_put(buffer, device, may_alias=True) for device in self.devices]
        return [self.arrays[device] for device in self.devices]


def _uses_host_memory(device: Any) -> bool:
    return (device or jax.local_devices()[0]).platform == "cpu"


def _alone(device: Any) -> Any:
    """What is done in here is done on that device, whatever mesh the caller has set."""
    if device is None:
        return nullcontext()
    return jax.set_mesh(Mesh(np.array([device]), ("one",), axis_types=(AxisType.Auto,)))


def _shards(spec: ParamSpec, place: Any) -> list[_Shard]:
    if place is None:
        return [_Shard(spec, (slice(None),) * len(spec.shape), [None])]
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in place.addressable_devices_indices_map(spec.shape).items():
        cut = tuple((r.start, r.stop) for r in (range(n)[i] for n, i in zip(spec.shape, index, strict=True)))
        devices.setdefault(cut, []).append(device)
    return [_Shard(spec, tuple(slice(*pair) for pair in cut), held) for cut, held in devices.items()]


def _whole(spec: ParamSpec, place: Any, shards: Iterable[_Shard]) -> Array:
    arrays = [array for shard in shards for array in shard.finish()]
    return arrays[0] if place is None else jax.make_array_from_single_device_arrays(spec.shape, place, arrays)


@partial(jax.jit, donate_argnums=0)
def _written(whole: Array, block: Array, at: Array) -> Array:
    """The array with one block of it replaced, in place."""
    lead = [at[i] for i in range(whole.ndim - block.ndim)]
    block = block.reshape((1,) * len(lead) + block.shape)
    return jax.lax.dynamic_update_slice(whole, block, lead + [jnp.int32(0)] * (whole.ndim - len(lead)))


def _read_packed(tensor: Tensor, slot: Slot, packing: Packing, stored: Packed | None) -> list[Callable[[], None]]:
    """One matrix of a parameter that is quantised, read, and how to put it into its place."""
    if stored is not None:
        return [partial(packing.store, slot.index, stored.read(slot, packing.matrix, packing.form.format))]
    shards = _shards(packing.matrix, packing.place)
    puts = _read(tensor, slot, (), shards)

    def put() -> None:
        for one in puts:
            one()
        packing.encode(slot.index, _whole(packing.matrix, packing.place, shards))

    return [put]


def _read(tensor: Tensor, slot: Slot, index: tuple[int, ...], shards: Sequence[_Shard]) -> list[Callable[[], None]]:
    """One matrix into all shards that have some of it: strips of the stored tensor, each read once for all."""
    input_major = slot.input_major and slot.inner > 0
    down, right = (0, slot.start) if input_major else (slot.start, 0)
    down += (slot.expert or 0) * (tensor.shape[-2] if len(tensor.shape) > 1 else 1)
    puts, aims = [], []
    for shard in shards:
        target, put = shard.target(index)
        puts.append(put)
        # As the tensor lies: its rows are out axes, or in axes where it is input_major.
        aims.append((target, shard.inner, shard.outer) if input_major else (target.T, shard.outer, shard.inner))
    first, last = _hull([rows for _, rows, _ in aims])
    left, end = _hull([columns for _, _, columns in aims])
    step = max(1, STRIP // max(1, tensor.columns * tensor.dtype.itemsize))
    for begin in range(first, last, step):
        stop = min(begin + step, last)
        strip = tensor.rows(down + begin, down + stop, right + left, right + end)
        for view, rows, columns in aims:
            mine, theirs = _overlap(rows, begin, stop)
            columns = slice(columns.start - left, columns.stop - left) if isinstance(columns, slice) else columns - left
            copy(view[mine], strip[theirs][:, columns])
    return puts


def _overlap(rows: Span, begin: int, stop: int) -> tuple[slice, Span]:
    """Which of a shard's rows are in a strip, and where in the strip they are."""
    if isinstance(rows, slice):
        low, high = max(rows.start, begin), max(min(rows.stop, stop), max(rows.start, begin))
        return slice(low - rows.start, high - rows.start), slice(low - begin, high - begin)
    mine = slice(*map(int, np.searchsorted(rows, (begin, stop))))
    return mine, rows[mine] - begin


def _hull(ranges: Sequence[Span]) -> tuple[int, int]:
    starts = [rows.start if isinstance(rows, slice) else int(rows[0]) for rows in ranges]
    ends = [rows.stop if isinstance(rows, slice) else int(rows[-1]) + 1 for rows in ranges]
    return min(starts), max(ends)


def _length(rows: Span) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An empty array that XLA on a CPU can use as it lies."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)
