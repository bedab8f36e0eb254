# SPDX-License-Identifier: Apache-2.0
"""Laws of the losses of pairs, and what they refuse. One program holds all of them; every test runs it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpost import losses
from jaxpost.faults import Fault
from jaxpost.losses import preference

N = 16
SMOOTHED = {"exo_pair": 0.01, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1, "sigmoid_norm": 0.1}
DPO = {kind: {"kind": kind, "label_smoothing": SMOOTHED.get(kind, 0.0)} for kind in preference.KINDS}
DPO |= {"robust at 0": {"kind": "robust"}, "norm at 0": {"kind": "sigmoid_norm"}, "cdpo": {"label_smoothing": 0.3}}
DPO |= {
    "mpo": {"kind": {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}},
    "alpha at 1": {"divergence": "alpha", "alpha": 1.0},
}
DPO |= {
    f"{kind} {d}": {"kind": kind, "divergence": d} for d in preference.DIVERGENCES for kind in ("sigmoid", "ipo_sum")
}
DPO |= {"alpha at 0": {"divergence": "alpha", "alpha": 0.0}, "discopop slow": {"kind": "discopop", "tau": 2.0}}
COUPLED = ("aot", "aot_unpaired")
# Where a likelier chosen and a less likely rejected answer can never be worse.
MONOTONE = ("sigmoid", "hinge", "bco_pair", "apo_zero", "robust at 0", "norm at 0", "mpo", "sft")
MONOTONE += ("sigmoid forward_kl", "sigmoid js", "sigmoid alpha", "cpo hinge", "cpo alpha", "simpo", "orpo")


def made(x, lengths, beta, mask):
    """Every loss of N pairs; x is policy and reference of the chosen, then of the rejected answers, `[4, N]`."""
    chosen, reference_chosen, rejected, reference_rejected = x
    nll = -chosen / lengths[0]
    named = {"chosen_lengths": lengths[0], "rejected_lengths": lengths[1]}
    four = (chosen, rejected, reference_chosen, reference_rejected)
    found = {
        name: losses.dpo(*four, beta=beta, nll=nll, mask=mask, **named, **options) for name, options in DPO.items()
    }
    cpo = functools.partial(losses.cpo, chosen, rejected, nll, beta=beta)
    found |= {"cpo hinge": cpo(kind="hinge"), "cpo ipo": cpo(kind="ipo", **named), "cpo alpha": cpo(alpha=0.01)}
    found |= {"cpo alone": cpo(nll_weight=0.0), "orpo": losses.orpo(chosen, rejected, *lengths, nll, beta=beta)}
    simpo = functools.partial(losses.simpo, chosen, rejected, *lengths, beta=beta)
    return found | {"simpo": simpo(gamma=0.0), "simpo wide": simpo(gamma=3.0), "alphapo": simpo(gamma=0.0, alpha=1e-4)}


@jax.jit
def every(x, lengths, beta, mask):
    """Losses `[N]` and gradients `[4, N]` of their sums, by name."""
    found, back = jax.vjp(lambda x: made(x, lengths, beta, mask), x)
    names = list(found)
    cotangents = {name: jnp.zeros((len(names), N)).at[i].set(1.0) for i, name in enumerate(names)}
    (gradients,) = jax.vmap(back)(cotangents)
    return found, dict(zip(names, gradients, strict=True))


def drawn(seed, spread=3.0):
    rng = np.random.default_rng(seed)
    policy = -rng.uniform(0.5, 40, (2, N))
    reference = policy + rng.normal(0, spread, (2, N))
    x = np.stack([policy, reference], axis=1).reshape(4, N).astype(np.float32)
    return x, rng.integers(1, 30, (2, N)).astype(np.float32)


def run(x, lengths, beta=0.1, mask=None):
    mask = np.ones(N, np.float32) if mask is None else mask
    return jax.device_get(every(x.astype(np.float32), lengths, np.float32(beta), mask))


SEEDS = st.integers(0, 2**16)
law = settings(max_examples=10, derandomize=True, deadline=None)


def test_extreme_log_probabilities_stay_finite():
    """All ways of saying 0 and -10,000, for which differences are 0 and 10,000 either way."""
    x = np.array(list(itertools.product([0.0, -1e4], repeat=4))).T
    for length, beta in ((1.0, 0.1), (7.0, 2.0)):
        found, gradients = run(x, np.full((2, N), length, np.float32), beta)
        assert len(found) == len(preference.KINDS) + 23
        for name in found:
            assert np.all(np.isfinite(found[name])) and np.all(np.isfinite(gradients[name])), name


@law
@given(SEEDS)
def test_signs_of_gradients(seed):
    x, lengths = drawn(seed)
    _, gradients = run(x, lengths)
    for name in MONOTONE:
        chosen, _, rejected, _ = gradients[name]
        assert np.all(chosen <= 0) and np.all(rejected >= 0) and np.any(chosen < 0), name
    # What looks at log-ratios only moves with the reference as it does with the policy.
    for name in set(DPO) - {"mpo", "sft", "aot"}:
        np.testing.assert_allclose(gradients[name][1::2], -gradients[name][::2], atol=1e-6, err_msg=name)


@law
@given(SEEDS)
def test_pairs_may_come_in_any_order(seed):
    x, lengths = drawn(seed)
    order = np.random.default_rng(seed).permutation(N)
    (found, gradients), (moved, turned) = run(x, lengths), run(x[:, order], lengths[:, order])
    for name in found:
        np.testing.assert_allclose(moved[name], found[name][order], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(turned[name], gradients[name][:, order], rtol=1e-4, atol=1e-5, err_msg=name)


@law
@given(SEEDS)
def test_kinds_agree_where_they_should(seed):
    x, lengths = drawn(seed)
    found, _ = run(x, lengths)
    alone, _ = run(x, np.ones_like(lengths))
    same = {"robust at 0": "sigmoid", "alpha at 1": "sigmoid", "alpha at 0": "sigmoid forward_kl"}
    same |= {"sigmoid reverse_kl": "sigmoid", "ipo_sum reverse_kl": "ipo_sum"}
    np.testing.assert_allclose(found["alphapo"], found["simpo"], atol=2e-2)
    for one, other in same.items():
        np.testing.assert_allclose(found[one], found[other], rtol=1e-3, atol=1e-4, err_msg=one)
    for one, other in {"norm at 0": "sigmoid", "ipo": "ipo_sum", "simpo": "cpo alone"}.items():
        np.testing.assert_allclose(alone[one], alone[other], rtol=1e-5, err_msg=one)
    mixed = 0.8 * found["sigmoid"] + 0.2 * found["bco_pair"] + found["sft"]
    np.testing.assert_allclose(found["mpo"], mixed, rtol=1e-6)
    assert np.all(found["simpo wide"] > found["simpo"])
    # cDPO is the likelihood when labels are flipped; `robust` takes that back on average.
    other_way, _ = run(x[[2, 3, 0, 1]], lengths[::-1])
    np.testing.assert_allclose(found["cdpo"], 0.7 * found["sigmoid"] + 0.3 * other_way["sigmoid"], rtol=1e-5)
    np.testing.assert_allclose(
        0.9 * found["robust"] + 0.1 * other_way["robust"], found["sigmoid"], rtol=1e-4, atol=1e-5
    )


def test_no_beta_knows_no_preference_and_a_wide_margin_costs_nothing():
    x, lengths = drawn(3)
    found, gradients = run(x, lengths, 1e-7)
    one_bit = np.log(2)
    wanted = {"sigmoid": one_bit, "sigmoid_norm": one_bit, "cdpo": one_bit, "bco_pair": 2 * one_bit, "hinge": 1.0}
    wanted |= {"apo_zero": 1.0, "apo_down": 1.0, "nca_pair": 2 * one_bit, "aot": one_bit, "aot_unpaired": one_bit}
    wanted |= {"discopop": one_bit / 2 + 0.5, "robust": one_bit}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
        assert np.abs(gradients[name]).max() < 1e-5, name
    x[1::2], x[0], x[2] = -500, 0, -1000
    found, _ = run(x, lengths)
    for name in ("sigmoid", "hinge", "bco_pair", "apo_zero", "discopop", "cpo alone", "robust at 0"):
        np.testing.assert_allclose(found[name], 0, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["robust"], 0.1 * 100 / -0.8, rtol=1e-5)  # unbiased, so without a lower bound
    np.testing.assert_allclose(found["exo_pair"], -np.log(0.99), rtol=1e-4)


@law
@given(SEEDS, st.sets(st.integers(0, N - 1), min_size=1, max_size=N - 1))
def test_pairs_that_are_not_there_change_no_others(seed, absent):
    """Whatever stands in their places, for the kinds that look at the whole batch."""
    x, lengths = drawn(seed)
    absent, present = sorted(absent), np.setdiff1d(np.arange(N), sorted(absent))
    mask = np.ones(N, np.float32)
    mask[absent] = 0
    broken = x.copy()
    for junk in (1e4, np.nan):
        broken[:, absent] = junk
        found, gradients = run(broken, lengths, 0.1, mask)
        # By hand: sorted numbers of those that are there.
        for kind, first, second in (("aot", x[0] - x[2], x[1] - x[3]), ("aot_unpaired", x[0] - x[1], x[2] - x[3])):
            z = 0.1 * (np.sort(first[present]) - np.sort(second[present]))
            wanted = 0.9 * np.logaddexp(0, -z) + 0.1 * np.logaddexp(0, z)
            np.testing.assert_allclose(found[kind][present][np.argsort(first[present])], wanted, rtol=1e-4)
            assert np.isnan(junk) or (np.all(gradients[kind][:, absent] == 0) and np.any(gradients[kind]))


X = jnp.zeros(2)
FOUR = (X, X, X, X)
REFUSED = {
    "no kind 'sigmod'; did you mean sigmoid": lambda: losses.dpo(*FOUR, kind="sigmod"),
    "no divergence 'jensen'; did you mean js": lambda: losses.dpo(*FOUR, divergence="jensen"),
    "kind is an empty mapping": lambda: losses.dpo(*FOUR, kind={}),
    "dpo: ipo also needs chosen_lengths and rejected_lengths": lambda: losses.dpo(*FOUR, kind="ipo"),
    "dpo: sft also needs nll": lambda: losses.dpo(*FOUR, kind={"sigmoid": 1.0, "sft": 0.1}),
    "beta is 0; it must be greater than 0": lambda: losses.dpo(*FOUR, beta=0.0),
    "label_smoothing is 0.1, but hinge has none": lambda: losses.dpo(*FOUR, kind="hinge", label_smoothing=0.1),
    "label_smoothing of exo_pair is 0; it must be more than 0": lambda: losses.dpo(*FOUR, kind="exo_pair"),
    "of robust is 0.5; .* less than 0.5": lambda: losses.dpo(*FOUR, kind="robust", label_smoothing=0.5),
    "nca_pair has no form for divergence 'js'": lambda: losses.dpo(*FOUR, kind="nca_pair", divergence="js"),
    "cpo: no kind 'simpo'; did you mean ipo or sigmoid": lambda: losses.cpo(X, X, X, kind="simpo"),
    "cpo: ipo also needs chosen_lengths": lambda: losses.cpo(X, X, X, kind="ipo"),
    "cpo: label_smoothing is 0.1, but hinge": lambda: losses.cpo(X, X, X, kind="hinge", label_smoothing=0.1),
    "simpo: beta is -1": lambda: losses.simpo(X, X, X, X, beta=-1.0, gamma=0.5),
    "length_weights: alpha is 2": lambda: losses.length_weights(
        jnp.ones((1, 3)), jnp.ones((1, 3), int), jnp.ones((1, 1)), alpha=2.0
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_meant_is_refused(words):
    with pytest.raises(Fault, match=words):
        REFUSED[words]()


def test_shapes_that_would_broadcast_are_refused():
    """In tests the signatures are checked before; for users this is the check."""
    with pytest.raises(Fault, match=r"dpo: these must have one shape, but are chosen \[2\], nll \[2, 1\]"):
        losses.checks.same_shape("dpo", chosen=X, nll=X[:, None], mask=None)


def test_length_desensitised_weights_by_hand():
    """Two answers of a row, the first beyond the shared two tokens, after prompts and before padding."""
    mask = jnp.array([[0, 1, 1, 1, 1, 0, 1, 1, 0, 0]], jnp.float32)
    segments = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]])
    weigh = jax.jit(functools.partial(losses.length_weights, alpha=0.25))
    weights = weigh(mask, segments, np.array([[2.0, 2.0]], np.float32))
    np.testing.assert_array_equal(weights[0], [0, 1, 1, 0.25, 0.25, 0, 1, 1, 0, 0])


def test_rewards_and_what_is_counted_of_them():
    @jax.jit
    def numbers(policy, reference):
        chosen = losses.implicit_rewards(policy, reference, beta=0.5)
        accuracies = [losses.pair_accuracies(chosen, 0 * chosen, tie=tie) for tie in (0.0, 0.5)]
        return (
            chosen,
            losses.pair_margins(chosen, 0 * chosen),
            *accuracies,
            losses.wpo_weights(policy, reference, -policy),
        )

    policy, reference = np.array([-1, -2, -3], np.float32), np.full(3, -2, np.float32)
    chosen, margins, accuracies, with_ties, weights = numbers(policy, reference)
    np.testing.assert_allclose(chosen, [0.5, 0.0, -0.5])
    np.testing.assert_allclose(margins, chosen)
    np.testing.assert_array_equal(accuracies, [1, 0, 0])
    np.testing.assert_array_equal(with_ties, [1, 0.5, 0])
    np.testing.assert_allclose(weights, np.exp([1, 0, -1 / 3]), rtol=1e-6)
