# SPDX-License-Identifier: Apache-2.0
"""What may stand on the trunk besides the head that writes words. The slots are empty until an edit fills them."""

import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Tree
from jaxpost.delta import einsum, plus
from jaxpost.faults import Fault
from jaxpost.models.architecture import Decoder


def classes(config: Decoder, weights: Tree, hidden: Float[Array, "b s d"]) -> Float[Array, "b s c"]:
    """The score of every class at every place, in float32 whatever the trunk computes in."""
    head = weights["heads"]
    if head["classes"] is None:
        raise Fault("this model has no head for classes; train one with delta=Both(Prefix(), Head(classes))")
    return plus(einsum("bsd,dc->bsc", hidden.astype(jnp.float32), head["classes"]), head["classes_shift"])
