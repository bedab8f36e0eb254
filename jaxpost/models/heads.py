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


def score(config: Decoder, weights: Tree, hidden: Float[Array, "b s d"]) -> Float[Array, "b s"]:
    """One number at every place, from a head of one class: how good the text is that ends there, as a reward model
    has it, or the return still to come, as a critic has it."""
    scores = classes(config, weights, hidden)
    if scores.shape[-1] != 1:
        raise Fault(f"a score is a head of one class, and this one has {scores.shape[-1]}; train it with Head(1)")
    return scores[..., 0]
