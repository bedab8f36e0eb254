# SPDX-License-Identifier: Apache-2.0
"""Losses of preferences, rewards and distillation against TRL (tests/golden/README.md): values and gradients."""

import functools
import json
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import losses
from jaxpost.losses import distill, masked_mean, preference, reference_free

WITHIN = 1e-5
HERE = Path(__file__).parent.parent / "golden" / "losses" / "preference.json"
GOLDEN = json.loads(HERE.read_text(encoding="utf-8"))


def single(x):
    return x.astype({"f": np.float32, "i": np.int32}.get(x.dtype.kind, x.dtype))


INPUTS = {name: {k: single(np.asarray(v)) for k, v in batch.items()} for name, batch in GOLDEN["inputs"].items()}
CASES = GOLDEN["cases"]
NOT_OF_DPO = ("wpo", "ld_alpha")
OF_A_CASE = ("desirable", "mismatched", "mismatched_reference", "targets", "good")


def halves(*arrays):
    """Chosen and rejected of each."""
    return [half for x in arrays for half in (x[: len(x) // 2], x[len(x) // 2 :])]


def dpo(sums, given, arguments):
    arguments = {k: v for k, v in arguments.items() if k not in NOT_OF_DPO} | {"beta": given["beta"]}
    chosen, rejected, *reference, longs, shorts = halves(sums, given["reference"], given["lengths"])
    arguments |= {"chosen_lengths": longs, "rejected_lengths": shorts, "nll": -chosen / jnp.mean(longs)}
    return jnp.mean(given["pair_weights"] * losses.dpo(chosen, rejected, *reference, **arguments))


def unpaired(sums, given, arguments, case):
    arguments = {**arguments, "desirable": given["desirable"]}
    if case["function"] == "kto":
        arguments["z"] = losses.kto_divergence(given["mismatched"], given["mismatched_reference"])
    if "running" in case:
        before = losses.RunningMean(*map(jnp.asarray, case["running"]))
        rewards = losses.implicit_rewards(sums, given["reference"], beta=arguments["beta"])
        arguments["shift"] = losses.running_mean(before, rewards).mean
    return jnp.mean(getattr(losses, case["function"])(sums, given["reference"], **arguments))


def without_reference(logits, given, arguments, function):
    picked = -losses.cross_entropy(logits[:, :-1], given["tokens"][:, 1:])
    there = (given["labels"][:, 1:] != -100).astype(np.float32)
    chosen, rejected, *lengths = halves(jnp.sum(picked * there, 1), there.sum(1))
    if function == "simpo":
        return jnp.mean(losses.simpo(chosen, rejected, *lengths, **arguments))
    if function == "cpo":
        nll = -chosen / jnp.mean(lengths[0])
        named = dict(zip(("chosen_lengths", "rejected_lengths"), lengths, strict=True))
        return jnp.mean(losses.cpo(chosen, rejected, nll, **named, **arguments))
    # TRL's ORPO learns the prompts too, by the mean over all tokens.
    attended = given["attended"][:5, 1:].astype(np.float32)
    nll = -masked_mean(picked[:5], attended)
    return jnp.mean(losses.orpo(chosen, rejected, *lengths, jnp.broadcast_to(nll, chosen.shape), **arguments))


def reward(scores, given, arguments, case):
    name, first, second = case["function"], scores[:5], scores[5:]
    if name == "bradley_terry":
        margin = {"margin": given["margin"]} if case.get("margin") else {}
        agreement = {"agreement": given["agreement"]} if "agreement" in case["name"] else {}
        return jnp.mean(losses.bradley_terry(first, second, **margin, **agreement, **arguments))
    if name == "bradley_terry_ties":
        return jnp.mean(losses.bradley_terry_ties(first, second, given["tied"], **arguments))
    if name == "two_class":
        return jnp.mean(losses.two_class(scores.reshape(5, 2), given["good"]))
    return jnp.mean(losses.pointwise(scores, given["targets"], **arguments))


def ours(case, x, given):
    """Our loss (or losses) of a case at x, by which it was differentiated."""
    function, arguments = case["function"], case.get("arguments", {})
    if function == "dpo":
        return dpo(x, given, arguments)
    if function in ("kto", "apo_zero_unpaired", "bco"):
        return unpaired(x, given, arguments, case)
    if function in ("cpo", "simpo", "orpo"):
        return without_reference(x, given, arguments, function)
    if function == "distillation":
        return losses.distillation(x, given["teacher"], targets=given["tokens"], **arguments)
    if function == "dft":
        there = (given["labels"][:, 1:] != -100).astype(np.float32)
        return masked_mean(losses.dft(-losses.cross_entropy(x[:, :-1], given["tokens"][:, 1:])), there)
    if function in ("entropy", "log_sum_squares"):
        return getattr(losses, function)(x)
    if function == "rankings":
        return losses.rankings(x, given["ranks"], given["there"].astype(np.float32))
    return reward(x, given, arguments, case)


def inputs(case):
    """What a case is computed from: x, and the rest."""
    of_case = {k: single(np.asarray(case[k])) for k in OF_A_CASE if k in case}
    if case["batch"] in ("near", "wide"):
        given, weights = INPUTS[case["batch"]], token_weights(case)
        sums = {k: (given[k] * weights).sum(1) for k in ("log_probs", "reference", "log_squares")}
        lengths = given["mask"][:, 1:].sum(1).astype(np.float32)
        sums |= {"lengths": lengths, "pair_weights": np.ones(len(lengths) // 2, np.float32)}
        sums |= {"beta": np.float32(case["arguments"]["beta"])}
        if case.get("arguments", {}).get("wpo"):
            each = jax.jit(losses.wpo_weights)(*(sums[k] for k in ("log_probs", "log_squares", "lengths")))
            sums["pair_weights"] = np.prod(halves(each), axis=0)
        return sums["log_probs"], sums | of_case
    if case["batch"] == "places":
        given = {k: x[:3, :4] for k, x in INPUTS["answers"].items()}
        return given["logits"], given
    given = INPUTS["scores" if case["batch"] == "ranked" else case["batch"]]
    return given[{"answers": "logits"}.get(case["batch"], case["batch"])], given | of_case


def token_weights(case):
    """What a token's log-probability is multiplied by in the sum of its answer."""
    mask = INPUTS[case["batch"]]["mask"][:, 1:].astype(np.float32)
    alpha = case.get("arguments", {}).get("ld_alpha")
    return mask if alpha is None else mask * length_weights(alpha)


@functools.cache
def length_weights(alpha):
    mask = INPUTS["near"]["mask"][:, 1:].astype(np.float32)  # that of `wide` too
    shared = np.tile(np.minimum(*halves(mask.sum(1))), 2)[:, None]
    weigh = jax.jit(functools.partial(losses.length_weights, alpha=alpha))
    return np.asarray(weigh(mask, np.ones(mask.shape, np.int32), shared))


def same(case):
    """Cases of one program: the same loss with the same arguments, of numbers of the same shapes."""
    batch = "log_probs" if case["batch"] in ("near", "wide") else case["batch"]
    arguments = dict(case.get("arguments", {}))
    if case["function"] == "dpo":  # beta and the weights are numbers there, not a part of the program
        arguments = {k: v for k, v in arguments.items() if k not in (*NOT_OF_DPO, "beta")}
    facts = (case["function"], arguments, "running" in case, case.get("margin"), "agreement" in case["name"])
    return json.dumps((batch, facts))


@functools.cache
def found():
    """Our value and gradient for every case, from one program: most of the time goes into compiling it. Cases of the
    same logits share their softmax, those of the same arguments are stacked."""
    groups, shared = {}, [case for case in CASES if case["batch"] == "answers"]
    for case in CASES:
        if case["batch"] != "answers":
            groups.setdefault(same(case), []).append(case)
    stacked = [jax.tree.map(lambda *x: np.stack(x), *map(inputs, group)) for group in groups.values()]

    def value_and_gradient(case, x, given):
        value, back = jax.vjp(lambda x: ours(case, x, given), x)
        return value, back(jnp.ones_like(value))[0]

    def every(stacked, of_shared):
        pairs = zip(groups.values(), stacked, strict=True)
        made = [jax.vmap(functools.partial(value_and_gradient, group[0]))(*given) for group, given in pairs]
        x, given = of_shared
        values, back = jax.vjp(lambda x: [ours(case, x, given) for case in shared], x)
        ones = [jnp.zeros((len(shared), *v.shape)).at[i].set(1.0) for i, v in enumerate(values)]
        (gradients,) = jax.vmap(back)(ones)
        return made, values, gradients

    of_groups, values, gradients = jax.device_get(jax.jit(every)(stacked, inputs(shared[0])))
    numbers = list(zip(shared, values, gradients, strict=True))
    for group, (values, gradients) in zip(groups.values(), of_groups, strict=True):
        numbers += zip(group, values, gradients, strict=True)
    return numbers


def off(case, value, gradient):
    """How far our numbers are off, by the largest that they are compared with."""
    if case["batch"] in ("near", "wide"):  # on to the tokens, by the chain rule
        gradient = gradient[:, None] * token_weights(case)
    if case["name"].endswith("chunked"):  # a mean over places
        value, gradient = value.mean(), gradient / value.size
    errors = []
    for mine, wanted in ((value, case["loss"]), (gradient, case["gradient"])):
        wanted = np.asarray(wanted)
        assert mine.shape == wanted.shape and np.abs(wanted).max() > 1e-4
        errors.append(float(np.abs(mine - wanted).max() / np.abs(wanted).max()))
    return tuple(errors)


@pytest.mark.parametrize("function", sorted({case["function"] for case in CASES}))
def test_values_and_gradients_are_those_of_the_other_library(function):
    mine = [found for found in found() if found[0]["function"] == function]
    errors = {(case["name"], case["batch"]): off(case, *numbers) for case, *numbers in mine}
    assert not {name: error for name, error in errors.items() if not max(error) <= WITHIN}


def test_every_loss_has_its_cases():
    """Each was compared, as many cases as are listed here; most are of code that is not ours."""
    wanted = {"dpo": 51, "kto": 6, "apo_zero_unpaired": 2, "bco": 4, "cpo": 5, "simpo": 2, "orpo": 1}
    wanted |= {"bradley_terry": 4, "bradley_terry_ties": 2, "rankings": 1, "pointwise": 2, "two_class": 1}
    wanted |= {"distillation": 9, "dft": 1, "entropy": 1, "log_sum_squares": 1}
    assert Counter(case["function"] for case, *_ in found()) == wanted and sum(wanted.values()) == 93
    assert sum(case["source"].startswith("trl ") for case in CASES) == 77
    assert sum(case["source"].startswith("formula: ") for case in CASES) == 11
    for function, kinds in {
        "dpo": preference.KINDS,
        "cpo": reference_free.CPO_KINDS,
        "distillation": distill.KINDS,
    }.items():
        named = [case["arguments"].get("kind", next(iter(kinds))) for case in CASES if case["function"] == function]
        assert {name for name in named if isinstance(name, str)} == set(kinds)
    divergences = {case["arguments"].get("divergence", "reverse_kl") for case in CASES if case["function"] == "dpo"}
    assert divergences == set(preference.DIVERGENCES)
