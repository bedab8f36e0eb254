# SPDX-License-Identifier: Apache-2.0
"""Parameters that are quantised while they are loaded, a matrix at a time: none is ever whole in full precision."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Array
from jaxpost.params import ParamSpec
from jaxpost.quant import QArray, quantise


class Packing:
    """A quantised parameter that comes into being. `spec` is that of the weight, `form` and `places` have specs and
    shardings (or nothing: the default device) where the finished one has arrays.

    Scales reach across what devices hold of a matrix, so each matrix is laid out over all devices, quantised there and
    put into place; lead axes are whole on every device.
    """

    def __init__(self, spec: ParamSpec, form: QArray, places: Any):
        lead = len(spec.groups[0])
        self.form, self.lead, self.done = form, spec.sizes(0), 0
        self.places = places
        self.matrix = replace(spec, shape=spec.shape[lead:], dims=":" + spec.dims.split(":", 1)[1])
        whole, part = self._places(0), self._places(lead)
        # The codes lie like the weight, axis by axis.
        self.place = None if part is None else part.codes
        self._encode: Any = jax.jit(partial(quantise, spec=self.matrix, format=form.format), out_shardings=part)
        self._put: Any = jax.jit(_put, donate_argnums=0, out_shardings=whole)
        zeros = jax.jit(lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), form), out_shardings=whole)
        self._start: Callable[[], QArray] = zeros
        self.whole: QArray | None = None

    def _places(self, without: int) -> Any:
        """The shardings of the arrays without their first axes."""
        if self.places is None:
            return None

        def behind(place: Any) -> Any:
            return NamedSharding(place.mesh, P(*place.spec[without:])) if isinstance(place, NamedSharding) else place

        return jax.tree.map(behind, self.places)

    def encode(self, index: tuple[int, ...], matrix: Array) -> None:
        self._add(index, self._encode(matrix))

    def store(self, index: tuple[int, ...], read: QArray) -> None:
        """A matrix that was stored quantised: arrays of the host, whole."""
        places = self._places(len(self.lead))

        def laid(x: np.ndarray, place: Any) -> Array:
            return jax.make_array_from_callback(x.shape, place, lambda at: x[at])

        x = jax.tree.map(np.asarray, read)
        self._add(index, jax.tree.map(jnp.asarray, x) if places is None else jax.tree.map(laid, x, places))

    def _add(self, index: tuple[int, ...], part: QArray) -> None:
        whole = self._start() if self.whole is None else self.whole
        # Waits: a matrix whose codes are still being formed would stay beside the next.
        self.whole = jax.block_until_ready(self._put(whole, part, np.array(index, np.int32)))

    def finish(self) -> QArray:
        assert self.whole is not None
        return self.whole


def _put(whole: QArray, part: QArray, at: Array) -> QArray:
    def one(x: Array, y: Array) -> Array:
        lead: Sequence[Any] = [at[i] for i in range(x.ndim - y.ndim)]
        return jax.lax.dynamic_update_slice(
            x, y.astype(x.dtype).reshape((1,) * len(lead) + y.shape), (*lead, *(0,) * y.ndim)
        )

    return jax.tree.map(one, whole, part)
