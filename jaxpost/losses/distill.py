# SPDX-License-Identifier: Apache-2.0
"""Losses of learning from another model's whole distribution, one place at a time."""

import jax
import jax.numpy as jnp

from jaxpost.arrays import Array, Float, Int
from jaxpost.faults import Fault
from jaxpost.losses.checks import known, positive, same_shape, within
from jaxpost.losses.kl import full_kl
from jaxpost.losses.token import cross_entropy

KINDS = ("forward", "reverse", "jensen_shannon")


def distillation(
    student: Float[Array, "*b v"],
    teacher: Float[Array, "*b v"],
    *,
    kind: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    times_temperature_squared: bool = False,
    targets: Int[Array, "*b"] | None = None,
    hard: float = 0.0,
) -> Float[Array, "*b"]:
    """The divergence of a student from its teacher, from logits; in nats, and no gradient to the teacher.

    With S and T the softmax of logits / temperature:

    - forward: `KL(T || S) = sum_v T_v log(T_v / S_v)`, which covers all that the teacher may say (Hinton et al. 2015,
      https://arxiv.org/abs/1503.02531); TRL's and GKD's beta 0.
    - reverse: `KL(S || T)`, which seeks what the teacher is sure of (Gu et al. 2023, https://arxiv.org/abs/2306.08543);
      their beta 1, the default of TRL's DistillationTrainer.
    - jensen_shannon: `beta KL(T || M) + (1 - beta) KL(S || M)`, `M = beta T + (1 - beta) S`, 0 < beta < 1 (Agarwal et
      al. 2023, https://arxiv.org/abs/2306.13649). It goes to 0 at both ends, not to the two others.

    `times_temperature_squared` multiplies by temperature^2, so that gradients keep their size when it changes (Hinton
    et al.); TRL does not. `hard` mixes in the likelihood of given tokens, at temperature 1:
    `(1 - hard) divergence + hard cross_entropy(student, targets)`. A word at minus infinity in both is no word.
    Faults: an unknown kind, beta or hard out of range, hard without targets.
    """
    same_shape("distillation", student=student, teacher=teacher)
    known("distillation", "kind", kind, KINDS)
    positive("distillation", temperature=temperature)
    within("distillation", "hard", hard, 0.0, 1.0)
    if hard and targets is None:
        raise Fault(f"distillation: hard is {hard:g} and there are no targets; pass the tokens that came")
    if kind == "jensen_shannon":
        within("distillation", "beta", beta, 0.0, 1.0, open_at=("low", "high"))
    student_logits = student.astype(jnp.float32) / temperature
    teacher_logits = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    if kind == "forward":
        loss = full_kl(teacher_logits, student_logits)
    elif kind == "reverse":
        loss = full_kl(student_logits, teacher_logits)
    else:
        s, t = jax.nn.log_softmax(student_logits, axis=-1), jax.nn.log_softmax(teacher_logits, axis=-1)
        mixed = _mixture(t, s, beta)
        loss = beta * full_kl(t, mixed) + (1 - beta) * full_kl(s, mixed)
    if times_temperature_squared:
        loss = temperature**2 * loss
    if hard:
        assert targets is not None
        loss = (1 - hard) * loss + hard * cross_entropy(student, targets)
    return loss


def _mixture(t: Array, s: Array, beta: float) -> Array:
    """`log(beta exp(t) + (1 - beta) exp(s))`. Minus infinity twice has no gradient, not even times 0: kept out."""
    neither = jnp.isneginf(t) & jnp.isneginf(s)
    t, s = jnp.where(neither, 0.0, t), jnp.where(neither, 0.0, s)
    return jnp.where(neither, -jnp.inf, jnp.logaddexp(t + jnp.log(beta), s + jnp.log1p(-beta)))
