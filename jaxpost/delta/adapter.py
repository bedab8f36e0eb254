# SPDX-License-Identifier: Apache-2.0
"""Bottlenecks in the stream (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from jaxpost import trees
from jaxpost.arrays import Array, Key, Tree
from jaxpost.delta.contract import Einsum, Op, Through, Weight
from jaxpost.delta.method import Method
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec, constant, normal

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"]
Source = Literal["own", "beside", "stream", "sum"]

_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


@struct.dataclass
class Bottleneck:
    """`y + scale * (act(x @ down + down_bias) @ up + up_bias)`, of the y that a layer is about to add to the stream.

    `source` says what x is: y itself (`own`), what the layer was given, which is normed (`beside`), the stream as it
    was (`stream`), or as it will be (`sum`). down is `[d, a]`, up `[a, d]`; both with the lead axes.
    """

    down: Any
    down_bias: Any
    up: Any
    up_bias: Any
    activation: Activation = struct.field(pytree_node=False, default="relu")
    source: Source = struct.field(pytree_node=False, default="own")
    scale: float = struct.field(pytree_node=False, default=1.0)
    fixed: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def fills(self) -> bool:
        return True

    def contract(self, op: Op, x: Array, w: Weight, key: Key | None = None) -> Array:
        assert isinstance(op, Through), "a bottleneck stands in the stream, it is no weight"
        sources = {"own": x, "beside": op.beside, "stream": op.stream, "sum": op.stream + x}
        low = Einsum("bsd,da->bsa")(sources[self.source], self.down) + self.down_bias.astype(x.dtype)[None, None]
        change = Einsum("bsa,ad->bsd")(_ACTIVATIONS[self.activation](low), self.up)
        return x + self.scale * (change + self.up_bias.astype(x.dtype)[None, None])

    def dense(self, w: Weight, dtype: Any) -> Array:
        raise Fault("an adapter is no weight: it cannot become part of one (export it as an adapter)")

    def lead(self) -> tuple[int, ...] | None:
        return None

    def letters(self, inner: str, outer: str) -> "Bottleneck":
        return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
            down=f"{outer} a", down_bias="a", up=f"a {outer}", up_bias=outer
        )


@dataclass(frozen=True)
class Adapters(Method):
    """Bottlenecks of width `d / reduction` behind attention and MLP: `houlsby` both, `pfeiffer` behind the MLP alone
    (https://arxiv.org/abs/2005.00247), `parallel` beside the MLP (He et al. 2021, https://arxiv.org/abs/2110.04366),
    scaled by `scale`.

    `source` is what they read (`Bottleneck`; `None`: what leaves the layer, of parallel ones what enters it);
    AdapterHub's Pfeiffer reads the `sum`, its parallel the `stream`. The way up starts as zero, so a fresh adapter
    changes nothing; unlike a low-rank update it cannot be folded away, and costs its time in sampling too.
    """

    kind: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    reduction: int = 16
    activation: Activation = "relu"
    scale: float = 1.0
    source: Source | None = None

    def __call__(self, specs: Tree) -> dict[str, Any]:
        if self.reduction < 1:
            raise Fault(f"adapters: reduction is {self.reduction}; it must be at least 1")
        places = ("*/attn/adapter", "*/mlp/adapter") if self.kind == "houlsby" else ("*/mlp/adapter",)
        flat = trees.flatten(specs)
        return {path: self._edit(flat[path]) for path in trees.select(flat, places, "adapters")}

    def _edit(self, place: ParamSpec) -> Bottleneck:
        lead, (width,) = place.sizes(0), place.sizes(2)
        low = max(1, width // self.reduction)
        of = " ".join(place.groups[0])
        part = replace(place, dtype=jnp.float32, derived=True, optional=False)

        def zeros(size: int, dims: str) -> ParamSpec:
            return replace(part, shape=(*lead, size), dims=f"{of} : : {dims}", init=constant(0.0))

        return Bottleneck(
            down=replace(part, shape=(*lead, width, low), dims=f"{of} : d : a", init=normal(0.02)),
            down_bias=zeros(low, "a"),
            up=replace(part, shape=(*lead, low, width), dims=f"{of} : a : d", init=constant(0.0)),
            up_bias=zeros(width, "d"),
            activation=self.activation,
            source=self.source or ("beside" if self.kind == "parallel" else "own"),
            scale=self.scale,
        )
