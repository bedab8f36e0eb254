# SPDX-License-Identifier: Apache-2.0
"""The table from logical axes to mesh axes, and the shardings that follow from it.

Letters (those of the einsums): b batch rows, s sequence, l layers, d model width, n query heads, k key/value heads,
h head size, f feed-forward width, e experts, p learned positions, v vocabulary, r rank of a low-rank factor.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpost.arrays import Array, Tree
from jaxpost.faults import Fault
from jaxpost.params import ParamSpec
from jaxpost.trees import path_of

Axes = str | tuple[str, ...]

_TENSOR: Mapping[str, Axes] = {"n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}


@dataclass(frozen=True)
class Rules:
    """`storage` says how parameters rest, `compute` how they and the activations are used inside a step."""

    storage: Mapping[str, Axes] = field(default_factory=lambda: {"d": "fsdp", **_TENSOR})
    compute: Mapping[str, Axes] = field(default_factory=lambda: {"b": ("data", "fsdp"), **_TENSOR})


RULES = Rules()
"""Data, fsdp and tensor parallelism in any combination; which of them act is the mesh's shape alone."""


def partition_spec(
    letters: Sequence[str | None],
    shape: tuple[int, ...],
    table: Mapping[str, Axes],
    mesh: Mesh | AbstractMesh,
    derived: bool,
    where: str,
) -> P:
    """Where each axis goes. Two axes on one mesh axis are refused, and so is a size that the mesh does not divide,
    unless the array is derived from another: then the axis is left whole."""
    taken: dict[str, str] = {}
    entries: list[Axes | None] = []
    for letter, size in zip(letters, shape, strict=True):
        wanted = table.get(letter) if letter else None
        names = tuple(n for n in ((wanted,) if isinstance(wanted, str) else wanted or ()) if n in mesh.shape)
        ways = math.prod(mesh.shape[name] for name in names)
        if ways > 1 and size % ways:
            if not derived:
                raise Fault(
                    f"{where}: axis {letter} of size {size} cannot be cut {ways} ways over mesh axis "
                    f"{'+'.join(names)}; choose a mesh whose {'+'.join(names)} divides {size}"
                )
            names = ()
        for name in names:
            if name in taken:
                raise Fault(f"{where}: axes {taken[name]} and {letter} are both laid on mesh axis {name}")
            taken[name] = str(letter)
        entries.append(names if len(names) > 1 else names[0] if names else None)
    return P(*entries)


def shardings(specs: Tree, mesh: Mesh, rules: Rules = RULES) -> Tree:
    """Where each parameter rests, for any tree of specs."""

    def leaf(key_path: tuple[Any, ...], spec: ParamSpec) -> NamedSharding:
        name = path_of(key_path)
        return NamedSharding(mesh, partition_spec(spec.letters, spec.shape, rules.storage, mesh, spec.derived, name))

    return jax.tree_util.tree_map_with_path(leaf, specs)


def rows(mesh: Mesh, rules: Rules = RULES) -> NamedSharding:
    """Where the rows of a batch live."""
    return NamedSharding(mesh, partition_spec(("b",), (mesh.size,), rules.compute, mesh, True, "rows"))


def constrain(x: Array, letters: str, rules: Rules = RULES) -> Array:
    """Says where an array must live at this point of a traced program. Without a mesh it does nothing.

    Activations and factors come in every size (a last batch, one prompt, a rank), so an axis that the mesh does not
    divide is left whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or not letters:
        return x
    spec = partition_spec(tuple(letters.split()), x.shape, rules.compute, mesh, True, f"array {letters!r}")
    return jax.lax.with_sharding_constraint(x, spec)


def ways(letter: str, rules: Rules = RULES) -> int:
    """Into how many pieces an axis of that letter is cut for computing, on the mesh of the program being traced."""
    mesh, names = jax.sharding.get_abstract_mesh(), rules.compute.get(letter, ())
    names = (names,) if isinstance(names, str) else names
    return math.prod(mesh.shape[name] for name in names if name in mesh.shape)


def on_each(
    function: Callable[..., Array],
    along: str,
    summed: tuple[str, int],
    letters: Tree,
    out: str,
    rules: Rules = RULES,
    checked: bool = True,
) -> Callable[..., Array]:
    """`function` run by every device of the mesh on its own pieces of the arguments (shard_map), for what XLA cannot
    cut up by itself. Without a mesh it is the function.

    `letters` names each argument's axes, `out` the result's. Axes `along` which nothing is contracted are cut as the
    rules say, and so is the axis `summed` (letter, size), the devices' results being added up then; all others are
    whole everywhere. Keys for random numbers become each device's own. JAX checks what varies over the mesh unless
    `checked` is false: calls of Pallas kernels do not say it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    letter, size = summed
    table = {name: axes for name, axes in rules.compute.items() if name in (*along.split(), letter)}

    def spec(x: Any, axes: str) -> P:
        return partition_spec(tuple(axes.split()), x.shape, table, mesh, True, f"array {axes!r}")

    (cut,) = partition_spec((letter,), (size,), table, mesh, True, letter)

    def whole(*arguments: Any) -> Array:
        placed = spec(jax.eval_shape(function, *arguments), out)
        apart = _names(P(*placed, cut))

        def piece(*pieces: Any) -> Array:
            def own(x: Any) -> Any:
                if not apart or not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                    return x
                fold = jax.random.fold_in
                return jax.vmap(fold, (0, None))(x, place) if x.ndim else fold(x, place)

            place = jax.lax.axis_index(apart) if apart else 0
            result = function(*jax.tree.map(own, pieces))
            return result if cut is None else jax.lax.psum(result, cut)

        cuts = jax.tree.map(spec, arguments, letters)
        return jax.shard_map(piece, in_specs=cuts, out_specs=placed, check_vma=checked)(*arguments)

    return whole


def _names(spec: P) -> tuple[str, ...]:
    """The mesh axes that a spec uses."""
    return tuple(name for entry in spec if entry for name in ((entry,) if isinstance(entry, str) else entry))
