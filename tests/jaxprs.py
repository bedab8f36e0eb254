# SPDX-License-Identifier: Apache-2.0
"""Questions about traced programs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations, those inside scans, checkpoints and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def products(f: Callable[..., Any], *args: Any) -> list[tuple[int, ...]]:
    """The shape of the result of every matrix product that a function makes, products over no axis left out."""
    return [
        equation.outvars[0].aval.shape
        for equation in equations(jax.make_jaxpr(f)(*args).jaxpr)
        if equation.primitive.name == "ragged_dot_general"
        or (equation.primitive.name == "dot_general" and equation.params["dimension_numbers"][0][0])
    ]


def before_loops(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All equations but those inside scans: what a loop over layers is given from outside is made by some of them."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "scan":
            for inner in jaxprs_in_params(equation.params):
                yield from before_loops(inner)
