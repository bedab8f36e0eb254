# SPDX-License-Identifier: Apache-2.0
"""Paths into trees: the currency that sharding, deltas, checkpoints and name tables pay with.

A path is the keys from the root to a leaf joined by slashes, `layers/attn/q`. A pattern is a shell wildcard over
paths (`layers/*/q`), or a bare name that stands for every path that ends in it (`q`).
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from jaxpost.arrays import Tree
from jaxpost.faults import Fault, nearest


def flatten(tree: Tree) -> dict[str, Any]:
    """Nested dicts as one flat dict from path to leaf. Empty slots (`None`) are leaves here: they are places too."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                walk(child, f"{path}/{name}" if path else name)
        else:
            flat[path] = node

    walk(tree, "")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*/{pattern}")


def select(paths: Iterable[str], patterns: Iterable[str], where: str = "targets") -> tuple[str, ...]:
    """The paths that match any of the patterns, in the order of `paths`; a pattern that matches nothing is a fault."""
    paths = tuple(paths)
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            names = {path.rsplit("/", 1)[-1] for path in paths} | set(paths)
            raise Fault(f"{where}: no parameter matches {pattern!r}; {nearest(pattern, names)}")
    return tuple(path for path in paths if any(matches(path, pattern) for pattern in patterns))


def partition(tree: Tree, keep: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """Two trees of the same form: leaves whose path is kept, and the others, each with `None` in the other's places."""
    flat = flatten(tree)
    kept = {path: leaf if keep(path) else None for path, leaf in flat.items()}
    rest = {path: None if keep(path) else leaf for path, leaf in flat.items()}
    return unflatten(kept), unflatten(rest)


def combine(first: Tree, second: Tree) -> Tree:
    """The inverse of `partition`: each leaf from the tree in which it is not `None`. As there, what is not a dict is
    one leaf: a quantised weight comes from one tree whole."""
    rest = flatten(second)
    return unflatten({path: rest[path] if leaf is None else leaf for path, leaf in flatten(first).items()})


def path_of(key_path: tuple[Any, ...]) -> str:
    """The slash path of a JAX key path, the same for dicts and for fields of dataclasses."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def summary(tree: Tree) -> str:
    """One line a leaf: path, shape, dtype, bytes."""
    rows = []
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        size = leaf.size * leaf.dtype.itemsize
        rows.append((path_of(key_path), "x".join(map(str, leaf.shape)) or "scalar", str(leaf.dtype), f"{size:,} B"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
