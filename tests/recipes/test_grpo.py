# SPDX-License-Identifier: Apache-2.0
"""Without a critic: every member of the family is what its losses say, and what has no reward teaches nothing."""

import functools
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpost import losses
from jaxpost.delta import Lora
from jaxpost.faults import Fault
from jaxpost.losses.policy import FAMILY
from jaxpost.recipes import grpo
from jaxpost.recipes.grpo import Objective, Sampler
from jaxpost.recipes.rollouts import policy
from jaxpost.recipes.rollouts.advantages import Advantage
from tests.recipes.rolled import CONFIG, METHODS, REWARDS, ROLLOUT, Learner, close, drawn, settings, wider
from tests.train.tiny import CUBE

PLAIN = grpo.Config("", delta=METHODS["plain"], rollout=ROLLOUT)
TAUGHT = drawn()["mask"] > 0
KNOWN = ~np.isnan(REWARDS)
RNG = np.random.default_rng(1)
MOVED = (0.3 * RNG.normal(size=TAUGHT.shape)).astype(np.float32)
AWAY = (0.3 * RNG.normal(size=TAUGHT.shape)).astype(np.float32)


def told(**changes):
    """The rollout with what was observed of it made up; the sampler's numbers are a little off the policy's."""
    batch = drawn()
    log_probs = batch["sampler_log_probs"] + 0.1 * AWAY[::-1]
    return {**batch, "log_probs": log_probs, "reference_log_probs": log_probs - AWAY, **changes}


def said(model, table, batch, temperature, *, remat="none", entropy=False, critic=None):
    """As if the policy's log-probabilities were what is trained, so that a gradient is that of the losses."""
    assert model is CONFIG and temperature == ROLLOUT.temperature and critic is None
    own = table[batch["row"]]
    undecided = 1.0 + 0.3 * jnp.cos(3 * own)
    return policy.Said(own, undecided if entropy else jax.lax.stop_gradient(undecided), None)


def loss_of(objective, batch, parts=1):
    """The loss of a table of log-probabilities, added up over so many microbatches."""
    config = replace(PLAIN, objective=objective)
    prepared, _ = grpo.prepare(config, {**jax.tree.map(jnp.asarray, batch), "row": jnp.arange(8)}, None)
    whole = policy.denominators(prepared)

    def value(table):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy, "answers", said)
            patch.setattr(policy, "roles", lambda made, base, key: (made, None))
            patch.setattr(grpo.delta, "combine", lambda trainable, fixed: trainable)
            loss = grpo.make_loss(CONFIG, config)
            cut = [{name: x[i::parts] for name, x in prepared.items()} for i in range(parts)]
            each = [loss(table, {"fixed": None, "base": None}, None, {**part, **whole}, None) for part in cut]
        return sum(total for total, _ in each), jax.tree.map(lambda *x: sum(x), *(told for _, told in each))

    return jax.value_and_grad(value, has_aux=True)


TABLE = told()["log_probs"] + MOVED


def evaluated(many, batch=None, parts=1):
    """Value, metrics and gradient of each objective at the table, in one program."""
    batch = told() if batch is None else batch
    make = lambda table: {name: loss_of(objective, batch, parts)(table) for name, objective in many.items()}  # noqa: E731
    return jax.device_get(jax.jit(make)(TABLE))


def grouped(rewards=REWARDS):
    """GRPO's advantages, in numpy."""
    found = np.zeros(8)
    for group in (slice(0, 4), slice(4, 8)):
        known = rewards[group][~np.isnan(rewards[group])]
        found[group] = np.nan_to_num((rewards[group] - known.mean()) / (known.std(ddof=1) + 1e-4))
    return found.astype(np.float32)


KINDS = {kind: Objective(kind=kind, low=0.1, high=0.15) for kind in FAMILY}


def directly(kind, table, old, advantages, mask):
    """The loss of a member by its name, from the functions of the losses."""
    bounds = {"low": 0.1, "high": 0.15}
    level = {"gspo": "sequence", "luspo": "sequence", "rloo": "sequence_sum"}.get(kind, "token")
    if kind in ("cispo", "sapo", "vespo"):
        each = {"cispo": losses.cispo, "sapo": losses.sapo, "vespo": losses.vespo}[kind](table, old, advantages, mask)
    else:
        each = losses.ppo(table, old, advantages, mask, level=level, **bounds)
    if kind == "dr_grpo":
        return jnp.sum(each * mask) / (7 * ROLLOUT.answer_tokens)
    if kind in ("bnpo", "dapo", "cispo", "vespo"):
        return jnp.sum(each * mask) / jnp.sum(mask)
    sums, lengths = jnp.sum(each * mask, axis=1), jnp.maximum(jnp.sum(mask, axis=1), 1.0)
    return jnp.sum(sums if kind == "luspo" else sums / lengths) / 7


@functools.cache
def kinds(parts=1):
    return evaluated(KINDS, parts=parts)


@functools.cache
def wanted_kinds():
    batch = jax.tree.map(jnp.asarray, told())

    def make(table):
        return {kind: jax.value_and_grad(functools.partial(directly, kind))(
            table, batch["log_probs"], jnp.asarray(grouped()), batch["mask"]) for kind in KINDS}  # fmt: skip

    return jax.device_get(jax.jit(make)(TABLE))


@pytest.mark.parametrize("kind", FAMILY)
def test_each_kind_is_what_its_losses_say(kind):
    (value, _), gradient = kinds()[kind]
    wanted, wanted_gradient = wanted_kinds()[kind]
    np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)
    assert np.isfinite(gradient).all() and np.linalg.norm(gradient) > 1e-3
    assert not gradient[~TAUGHT].any(), "padding, and the answer without a score"


@pytest.mark.parametrize("kind", FAMILY)
def test_microbatches_add_up_to_the_whole(kind):
    (value, metrics), gradient = kinds()[kind]
    (other, other_metrics), other_gradient = kinds(2)[kind]
    np.testing.assert_allclose(other, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-4, atol=1e-7)
    for name in metrics:
        np.testing.assert_allclose(other_metrics[name], metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_kinds_differ():
    values = [round(float(value), 6) for (value, _), _ in kinds().values()]
    assert len(set(values)) == len(FAMILY) - 1, "dapo and bnpo differ where microbatches are counted by themselves"


# --- what is added


ADDED = {
    "nothing": Objective(kind="dapo"),
    "kl": Objective(kind="dapo", kl=0.5, unbiased=False),
    "kl by the ratio": Objective(kind="dapo", kl=0.5),
    "entropy": Objective(kind="dapo", entropy=0.5),
    "half of the tokens": Objective(kind="dapo", top_entropy=0.5),
    "off policy": Objective(kind="dapo", off_policy=0.0),
    "sampler by tokens": Objective(kind="dapo", sampler=Sampler(cap=1.02)),
    "sampler by answers": Objective(kind="dapo", sampler=Sampler("sequence", "mask", 1.02)),
    "vespo's own": Objective(kind="vespo", sampler=Sampler("sequence", "mask", 1.02)),
}


@functools.cache
def added():
    return evaluated(ADDED)


def mean(x):
    return x[TAUGHT].sum() / TAUGHT.sum()


def test_a_divergence_from_the_reference_costs():
    d = TABLE - told()["reference_log_probs"]
    estimate, ratio = np.exp(-d) + d - 1, np.exp(MOVED)
    plain = added()["nothing"][0][0]
    np.testing.assert_allclose(added()["kl"][0][0] - plain, 0.5 * mean(estimate), rtol=1e-4)
    np.testing.assert_allclose(added()["kl by the ratio"][0][0] - plain, 0.5 * mean(estimate * ratio), rtol=1e-4)
    gradient = (added()["kl"][1] - added()["nothing"][1])[TAUGHT]
    np.testing.assert_allclose(gradient, 0.5 * (1 - np.exp(-d))[TAUGHT] / TAUGHT.sum(), atol=1e-6)


def test_undecidedness_is_rewarded_and_chosen_by():
    entropy = 1.0 + 0.3 * np.cos(3 * TABLE)
    plain = added()["nothing"][0][0]
    np.testing.assert_allclose(added()["entropy"][0][0] - plain, -0.5 * mean(entropy), rtol=1e-4)
    kept = added()["half of the tokens"][1] != 0
    middle = np.median(entropy[TAUGHT])
    assert kept.any() and (entropy[kept] >= middle).all() and (entropy[TAUGHT & ~kept] <= middle + 1e-6).sum() > 5


def test_a_sampler_that_is_off_is_corrected_for():
    batch, plain = told(), added()["nothing"][1]
    ratio = np.exp(batch["log_probs"] - batch["sampler_log_probs"])
    np.testing.assert_allclose(added()["sampler by tokens"][1], plain * np.minimum(ratio, 1.02), atol=1e-6)
    whole = np.exp(np.where(TAUGHT, batch["log_probs"] - batch["sampler_log_probs"], 0.0).sum(axis=1))
    kept = np.where(whole <= 1.02, whole, 0.0)[:, None]
    assert (kept == 0).any() and (kept > 0).any()
    np.testing.assert_allclose(added()["sampler by answers"][1], plain * kept, atol=1e-6)
    assert np.isfinite(added()["vespo's own"][1]).all()


def test_bad_answers_that_have_become_strange_are_left_out():
    gap = np.where(TAUGHT, told()["sampler_log_probs"] - TABLE, 0.0).sum(axis=1) / np.maximum(TAUGHT.sum(axis=1), 1)
    out = (grouped() < 0) & (gap > 0)
    assert out.any() and (grouped()[~out] < 0).any()
    plain, found = added()["nothing"][1], added()["off policy"][1]
    np.testing.assert_allclose(found, np.where(out[:, None], 0.0, plain), atol=1e-7)


# --- advantages


def each_group(act, rewards=REWARDS):
    found = np.zeros(8)
    for group in (slice(0, 4), slice(4, 8)):
        found[group] = act(rewards[group], group)
    return np.where(KNOWN, np.nan_to_num(found), 0.0)


def whitened(x):
    inside = x[TAUGHT]
    return np.where(TAUGHT, (x - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8), 0.0)


def over(x):
    return np.broadcast_to(x[:, None], TAUGHT.shape)


def own_length(r, group):
    lengths = TAUGHT[group].sum(axis=1)
    return r - np.nansum(lengths * r) / lengths.sum()


def others(r, group):
    known = ~np.isnan(r)
    return [r[i] - (np.nansum(r) - r[i]) / (known.sum() - 1) for i in range(len(r))]


WAYS = {
    "group": (Objective(), lambda: over(grouped())),
    "by the batch": (Objective(scale="batch"), lambda: over(
        each_group(lambda r, _: (r - np.nanmean(r)) / (np.nanstd(REWARDS, ddof=1) + 1e-4)))),
    "unscaled": (Objective(scale="none"), lambda: over(each_group(lambda r, _: r - np.nanmean(r)))),
    "leave_one_out": (Objective(advantage="leave_one_out"), lambda: over(each_group(others))),
    "length_weighted": (Objective(advantage="length_weighted"), lambda: over(each_group(own_length))),
    "baseline": (Objective(advantage="baseline"), lambda: whitened(over(each_group(lambda r, _: r - np.nanmean(r))))),
    "reinforce++": (Objective(advantage="reinforce++"), lambda: whitened(over(np.nan_to_num(REWARDS)))),
    "decoupled": (Objective(advantage="decoupled"), lambda: over(np.where(KNOWN, (grouped() - grouped()[KNOWN].mean())
                  / (grouped()[KNOWN].std(ddof=1) + 1e-4), 0.0))),
}  # fmt: skip


@functools.cache
def ways(kl=0.0, rewards=None):
    batch = told()
    if rewards is not None:
        batch |= {"reward": np.array(rewards, np.float32), "scores": np.array(rewards, np.float32)[:, None]}
    chosen = {name: replace(objective, kl_in_reward=kl) for name, (objective, _) in WAYS.items()}

    def make(batch):
        return {name: grpo.prepare(replace(PLAIN, objective=one), batch, None) for name, one in chosen.items()}

    return jax.device_get(jax.jit(make)(batch))


@pytest.mark.parametrize("name", WAYS)
def test_each_advantage_is_what_its_formula_says(name):
    found, metrics = ways()[name]
    assert found["advantages"].shape == TAUGHT.shape and np.isfinite(found["advantages"]).all()
    np.testing.assert_allclose(
        np.where(TAUGHT, found["advantages"], 0), np.where(TAUGHT, WAYS[name][1](), 0), atol=2e-5
    )
    assert metrics["varied"] == 7 / 8


def test_every_way_is_tried():
    assert {objective.advantage for objective, _ in WAYS.values()} == set(get_args(Advantage))


@pytest.mark.parametrize("name", WAYS)
def test_groups_whose_rewards_are_alike_teach_nothing(name):
    found, metrics = ways(rewards=(0.1,) * 4 + (0.7, 0.1, 0.1, 0.1))[name]
    alone = found["advantages"][:4][TAUGHT[:4]]
    if name == "reinforce++":  # its baseline is the batch's mean
        assert (alone < 0).all()
    elif name in ("baseline", "decoupled"):
        assert np.ptp(alone) < 1e-6, "nothing but the mean over all tokens"
    else:
        assert not alone.any()
    assert metrics["varied"] == 0.5 and np.any(found["advantages"][4:])


def test_the_divergence_may_be_part_of_the_reward():
    """Of the whole answer, or for REINFORCE++ of each token."""
    kl = np.where(TAUGHT, AWAY, 0.0)
    less = REWARDS - 0.5 * kl.sum(axis=1)
    found, _ = ways(0.5)["leave_one_out"]
    np.testing.assert_allclose(found["advantages"], over(each_group(others, less)), atol=1e-5)
    tokens = -0.5 * kl
    tokens[np.arange(8), np.maximum(TAUGHT.sum(axis=1) - 1, 0)] += np.nan_to_num(REWARDS)
    returns = np.cumsum(np.where(TAUGHT, tokens, 0.0)[:, ::-1], axis=1)[:, ::-1]
    found, _ = ways(0.5)["reinforce++"]
    np.testing.assert_allclose(found["advantages"], whitened(returns), atol=1e-5)


# --- the step


CHOSEN = settings(PLAIN, objective=Objective(kind="dapo", kl=0.1, entropy=0.01))


@functools.cache
def learner():
    return Learner(grpo, CHOSEN, "plain")


@functools.cache
def stepped():
    ((moved, metrics),) = learner().steps(told())
    return moved, metrics


def test_neither_microbatches_nor_room_nor_devices_change_anything():
    """All at once, so one comparison stands for each."""
    roomy = replace(ROLLOUT, prompt_tokens=7, answer_tokens=9)
    config = replace(CHOSEN, rollout=roomy, train=replace(CHOSEN.train, microbatches=2))
    ((moved, metrics),) = Learner(grpo, config, "plain", CUBE).steps(wider(told(), roomy))
    wanted, wanted_metrics = stepped()
    close(moved, wanted)
    assert metrics.keys() == wanted_metrics.keys()
    for name, value in wanted_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_has_no_score_never_reaches_the_weights():
    """Whatever stands in its place, and if nothing at all has one, nothing moves."""
    moved, metrics = stepped()
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(moved))
    assert all(np.isfinite(value) for value in metrics.values())
    np.testing.assert_allclose(metrics["reward"], REWARDS[KNOWN].mean(), rtol=1e-5)
    batch = told()
    other = {**batch, "answers": batch["answers"].copy(), "sampler_log_probs": batch["sampler_log_probs"].copy()}
    other["answers"][6], other["sampler_log_probs"][6] = 5, np.nan
    silent = {"reward": np.full(8, np.nan, np.float32), "mask": np.zeros_like(batch["mask"])}
    ((again, _),) = learner().steps(other)
    close(again, moved, 1e-6)
    ((still, metrics),) = learner().steps({**batch, **silent, "scores": silent["reward"][:, None]})
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(still)) and np.isnan(metrics["reward"])


# --- configs


def test_what_is_observed_costs_only_where_it_is_needed():
    assert grpo.observed(PLAIN) == ()
    assert grpo.observed(replace(PLAIN, minibatches=2)) == ("log_probs",) == grpo.observed(replace(PLAIN, epochs=2))
    for objective in (Objective(kl=0.1), Objective(kl_in_reward=0.1)):
        assert grpo.observed(replace(PLAIN, objective=objective)) == ("log_probs", "reference_log_probs")


def test_what_cannot_be_learned_is_refused():
    alone = replace(PLAIN, rollout=replace(ROLLOUT, samples=1))
    with pytest.raises(Fault, match="rollout.samples is 1: a group of one has nothing to be compared with; take 2"):
        grpo.check(alone)
    grpo.check(replace(alone, objective=Objective(advantage="reinforce++")))
    with pytest.raises(Fault, match="top_entropy compares the tokens of a whole batch; set train.microbatches to 1"):
        grpo.check(replace(PLAIN, objective=Objective(top_entropy=0.5), train=grpo.Training(microbatches=2)))
    with pytest.raises(Fault, match="objective.kl_in_reward is for one reward; with the decoupled"):
        grpo.check(replace(PLAIN, objective=Objective(advantage="decoupled", kl_in_reward=0.1)))
    decoupled = Objective(advantage="decoupled")
    with pytest.raises(Fault, match="rollout.unended has no part in the decoupled advantage; reward 'ended' beside"):
        grpo.check(replace(PLAIN, objective=decoupled, rollout=replace(ROLLOUT, unended=-1.0)))
    with pytest.raises(Fault, match="objective.kind is 'drgrpo'; did you mean dr_grpo"):
        Objective(kind="drgrpo")
    with pytest.raises(Fault, match="objective.advantage is 'groups'; did you mean group"):
        Objective(advantage="groups")  # pyright: ignore[reportArgumentType]
    assert isinstance(PLAIN.delta, Lora)
