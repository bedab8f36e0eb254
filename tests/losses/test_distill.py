# SPDX-License-Identifier: Apache-2.0
"""Laws of divergences from a teacher, and of entropy, DFT and the chance of two draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import losses
from jaxpost.faults import Fault
from jaxpost.losses.distill import KINDS

B, V = 4, 5
law = settings(max_examples=10, derandomize=True, deadline=None)


@jax.jit
def every(student, teacher, targets):
    """Losses of all places, and the gradients of their sums in both models' logits."""

    def made(student, teacher):
        def distil(**options):
            return losses.distillation(student, teacher, **options)

        found = {kind: distil(kind=kind) for kind in KINDS}
        found |= {"skewed": distil(kind="jensen_shannon", beta=0.25)}
        found |= {"hot": distil(temperature=200.0, times_temperature_squared=True)}
        found |= {"hard": distil(targets=targets, hard=1.0), "half": distil(targets=targets, hard=0.5)}
        cross = losses.cross_entropy(student, targets)
        found |= {"cross": cross, "dft": losses.dft(-cross), "entropy": losses.entropy(student)}
        return found | {"squares": losses.log_sum_squares(student)}

    found, back = jax.vjp(made, student, teacher)
    ones = {name: {other: jnp.full(B, float(other == name)) for other in found} for name in found}
    return found, {name: back(cotangent) for name, cotangent in ones.items()}


def run(student, teacher, targets):
    return jax.device_get(every(student.astype(np.float32), teacher.astype(np.float32), targets.astype(np.int32)))


@law
@given(st.integers(0, 2**16))
def test_laws(seed):
    rng = np.random.default_rng(seed)
    student, teacher, targets = rng.normal(0, 2, (B, V)), rng.normal(0, 2, (B, V)), rng.integers(0, V, B)
    found, gradients = run(student, teacher, targets)
    p = np.exp(student) / np.exp(student).sum(-1, keepdims=True)
    q = np.exp(teacher) / np.exp(teacher).sum(-1, keepdims=True)
    np.testing.assert_allclose(found["forward"], (q * np.log(q / p)).sum(-1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["reverse"], (p * np.log(p / q)).sum(-1), rtol=1e-3, atol=1e-5)
    assert np.all(found["jensen_shannon"] <= np.log(2)) and np.all(found["skewed"] >= -1e-6)
    np.testing.assert_allclose(found["hard"], found["cross"], rtol=1e-5)
    np.testing.assert_allclose(found["half"], (found["cross"] + found["forward"]) / 2, rtol=1e-4)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(-1), rtol=1e-3)
    np.testing.assert_allclose(found["squares"], np.log((p**2).sum(-1)), rtol=1e-3, atol=1e-5)
    # Where temperature goes to infinity it matches logits: 1 / (2 V) of their squared distance, centred.
    apart = (student - teacher) - (student - teacher).mean(-1, keepdims=True)
    np.testing.assert_allclose(found["hot"], (apart**2).sum(-1) / (2 * V), rtol=0.1, atol=1e-2)
    np.testing.assert_allclose(gradients["forward"][0], p - q, atol=1e-5)
    chosen = np.take_along_axis(p, targets[:, None], 1)
    np.testing.assert_allclose(gradients["dft"][0], chosen * (p - np.eye(V)[targets]), atol=1e-5)
    for of_student, of_teacher in gradients.values():
        np.testing.assert_allclose(of_student.sum(-1), 0, atol=1e-4)  # no shift of all logits matters
        assert not np.any(of_teacher)
    found, gradients = run(student, student + 3, targets)
    for name in (*KINDS, "skewed", "hot"):
        np.testing.assert_allclose(found[name], 0, atol=1e-2 if name == "hot" else 1e-5)
        np.testing.assert_allclose(gradients[name][0], 0, atol=1e-4)


def test_extreme_logits_stay_finite_and_excluded_words_have_no_share():
    extreme = np.array([[1e4, 0, 0, -1e4, 1], [-1e4, 1e4, 0, 0, 2], [0, 0, 0, 0, 1e4], [-1e4] * 5])
    for teacher in (extreme, extreme[::-1], -extreme):
        found, gradients = run(extreme, teacher, np.array([0, 3, 1, 2]))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, gradients)))
    logits, teacher = np.tile(np.log([1.0, 2, 5, 1, 1]), (B, 1)), np.tile(np.log([2.0, 2, 2, 1, 1]), (B, 1))
    logits[:, 3:], teacher[:, 3:] = -np.inf, -np.inf
    found, gradients = run(logits, teacher, np.array([0, 1, 2, 0]))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((found, gradients)))
    p, q = np.array([1, 2, 5]) / 8, np.ones(3) / 3
    np.testing.assert_allclose(found["forward"], (q * np.log(q / p)).sum(), rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(), rtol=1e-5)


X = jnp.zeros((2, 3))
REFUSED = {
    "no kind 'reversed'; did you mean reverse": {"kind": "reversed"},
    "hard is 0.5 and there are no targets": {"hard": 0.5},
    "hard is 2; it must be at least 0 and at most 1": {"hard": 2.0},
    "beta is 1; it must be more than 0 and less than 1": {"kind": "jensen_shannon", "beta": 1.0},
    "temperature is 0; it must be greater than 0": {"temperature": 0.0},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused(words):
    with pytest.raises(Fault, match=words):
        losses.distillation(X, X, **REFUSED[words])
