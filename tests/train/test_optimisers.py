# SPDX-License-Identifier: Apache-2.0
"""Optimisers and schedules: rates at exact steps, what decays, what is clipped, what Adafactor takes for a matrix."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpost import delta, params, trees
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.params import ParamSpec, constant, normal
from jaxpost.train.optimisers import Optimiser, as_matrices, make, schedule
from tests.train.tiny import CONFIG

SPECS = {
    "q": ParamSpec((2, 6, 4, 3), "l : d : n h", normal(1.0)),
    "o": ParamSpec((2, 4, 3, 6), "l : n h : d", normal(1.0)),
    "embed": ParamSpec((10, 6), ": v : d", normal(1.0)),
    "norm": ParamSpec((2, 6), "l : : d", normal(1.0)),
    "bias": ParamSpec((2, 4, 3), "l : : n h", normal(1.0)),
}
MATRICES = {"q", "o", "embed"}
NAMES = ("adamw", "adafactor", "sgd", "lion")


def drawn(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.normal(size=spec.shape).astype(np.float32) for path, spec in SPECS.items()}


def stepper(optimiser):
    @jax.jit
    def step(trainable, opt_state, gradients):
        updates, opt_state = optimiser.update(gradients, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    return step


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_finds_the_minimum(name):
    """Of half the squared distance to a point; sign and size of the step are right, through clipping and decay to 0."""
    aim, at = drawn(1), drawn(0)
    optimiser = make(Optimiser(name, lr=0.2, warmup=3, final=0.0, clip=5.0), 60, SPECS)
    step, opt_state = stepper(optimiser), optimiser.init(at)

    def distance():
        return {path: float(np.linalg.norm(at[path] - aim[path])) for path in at}

    first = distance()
    for _ in range(60):
        at, opt_state = step(at, opt_state, jax.tree.map(np.subtract, at, aim))
    assert all(distance()[path] < 0.35 * first[path] for path in at), (first, distance())


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_decay_pulls_matrices_and_leaves_norms_and_biases(name):
    optimiser = make(Optimiser(name, lr=0.1, schedule="constant", weight_decay=0.5, clip=0.0), 10, SPECS)
    before = drawn(0)
    after, _ = stepper(optimiser)(before, optimiser.init(before), jax.tree.map(np.zeros_like, before))
    for path in SPECS:
        wanted = before[path] * (0.95 if path in MATRICES else 1.0)
        np.testing.assert_allclose(after[path], wanted, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", [delta.Full(), delta.Lora(rank=2)])
def test_what_decays_of_a_real_model(kind):
    """Of full tuning everything but the norms; of low-rank factors all."""
    specs, _ = delta.partition(kind(decoder.specs(CONFIG)))
    optimiser = make(Optimiser("sgd", lr=1.0, schedule="constant", weight_decay=0.5, clip=0.0), 10, specs)
    ones = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32), specs)
    updates, _ = jax.jit(optimiser.update)(jax.tree.map(np.zeros_like, ones), optimiser.init(ones), ones)
    kept = {path for path, edit in updates.items() if not any(np.any(leaf) for leaf in jax.tree.leaves(edit))}
    norms = {"layers/attn_norm", "layers/mlp_norm", "norm"}
    assert kept == (norms if isinstance(kind, delta.Full) else set())
    assert all(np.all(leaf == -0.5) for path in updates.keys() - kept for leaf in jax.tree.leaves(updates[path]))


@pytest.mark.parametrize("clip, size, wanted", [(2.0, 10.0, 2.0), (2.0, 0.5, 0.5), (0.0, 10.0, 10.0)])
def test_clipping_bounds_the_global_norm(clip, size, wanted):
    optimiser = make(Optimiser("sgd", lr=1.0, schedule="constant", clip=clip), 10, SPECS)
    gradients = drawn(0)
    gradients = jax.tree.map(lambda g: g * size / optax.tree.norm(gradients), gradients)
    updates, _ = jax.jit(optimiser.update)(gradients, optimiser.init(gradients), gradients)
    np.testing.assert_allclose(optax.tree.norm(updates), wanted, rtol=1e-5)
    scaled = jax.tree.map(lambda g: -g * wanted / size, gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), updates, scaled)


def test_settings_reach_the_optimiser():
    """One step of AdamW and two of Lion and of SGD with momentum, by hand."""
    at, g = {"w": jnp.array([[2.0]])}, {"w": jnp.array([[0.5]])}
    specs = {"w": ParamSpec((1, 1), ": d : f", constant(0.0))}

    def after(steps, **settings):
        optimiser = make(Optimiser(lr=0.1, schedule="constant", clip=0.0, **settings), 10, specs)
        w, opt_state = at, optimiser.init(at)
        for _ in range(steps):
            w, opt_state = stepper(optimiser)(w, opt_state, g)
        return float(w["w"][0, 0])

    assert after(1, name="adamw", eps=0.5, weight_decay=0.3) == pytest.approx(2 - 0.1 * (0.5 / 1.0 + 0.3 * 2))
    # Two steps of the same gradient: momentum 0.9 makes 1 and 1.9 of it.
    assert after(2, name="sgd", momentum=0.9) == pytest.approx(2 - 0.1 * 0.5 * 2.9)
    assert after(2, name="lion") == pytest.approx(2 - 0.1 * 2)
    assert after(2, name="adamw", b1=0.0, b2=0.0) == pytest.approx(2 - 0.1 * 2)


# --- schedules


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@given(lr=st.floats(1e-5, 1.0), warmup=st.integers(0, 20), rest=st.integers(2, 50), final=st.floats(0.0, 1.0))
def test_a_schedule_at_its_corners(kind, lr, warmup, rest, final):
    steps = warmup + rest
    rate = schedule(Optimiser(lr=lr, schedule=kind, warmup=warmup, final=final), steps)
    rates = np.array([float(rate(step)) for step in range(steps + 1)])
    near = dict(rtol=1e-4, atol=1e-6 * lr)
    # Up: one warmup-th more a step, the whole at the warmup's last; no step is without a rate.
    np.testing.assert_allclose(rates[:warmup], lr * np.arange(1, warmup + 1) / max(1, warmup), **near)
    np.testing.assert_allclose(rates[warmup], lr, **near)  # where the two parts join
    done = np.arange(rest + 1) / rest
    falling = 1 - done if kind == "linear" else (1 + np.cos(math.pi * done)) / 2
    np.testing.assert_allclose(rates[warmup:], lr * (final + (1 - final) * falling), **near)
    assert np.all(rates[:-1] > 0) and np.all(np.diff(rates[warmup:]) <= 1e-6 * lr)


@pytest.mark.parametrize("warmup", [0, 4, 10, 30])
def test_a_constant_rate_stays(warmup):
    rate = schedule(Optimiser(lr=0.5, schedule="constant", warmup=warmup), 10)
    wanted = [0.5 * min(1.0, (step + 1) / max(1, warmup)) for step in range(40)]
    np.testing.assert_allclose([float(rate(step)) for step in range(40)], wanted, rtol=1e-5)


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warmup_as_long_as_the_run_is_refused(warmup):
    for make_it in (schedule, lambda config, steps: make(config, steps, SPECS)):
        with pytest.raises(Fault, match=f"warmup is {warmup} but the run has 10 steps"):
            make_it(Optimiser(warmup=warmup), 10)
    assert float(schedule(Optimiser(lr=1.0, warmup=9), 10)(9)) == 1.0


def test_the_rate_of_the_first_step_is_used_in_the_first_step():
    optimiser = make(Optimiser("sgd", lr=1.0, warmup=4, schedule="linear", clip=0.0), 8, SPECS)
    at, ones = drawn(0), jax.tree.map(np.ones_like, drawn(0))
    opt_state, rates, update = optimiser.init(at), [], jax.jit(optimiser.update)
    for _ in range(8):
        updates, opt_state = update(ones, opt_state, at)
        rates.append(-float(updates["norm"][0, 0]))
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25], rtol=1e-6)


# --- Adafactor


def adafactor():
    return optax.adafactor(0.1, min_dim_size_to_factor=4, multiply_by_parameter_scale=False)


def test_adafactor_sees_each_layers_matrix():
    """Every update is what the optimiser gives for that layer's weight alone, as a matrix; and not what it gives for
    the stacked leaf."""
    whole, at = as_matrices(adafactor(), SPECS), drawn(0)
    step, opt_state = stepper(whole), whole.init(at)
    single = adafactor()
    sizes = {path: [math.prod(spec.sizes(group)) for group in range(3)] for path, spec in SPECS.items()}
    alone = {path: list(leaf.reshape(sizes[path])) for path, leaf in at.items()}
    states = {path: [single.init(matrix) for matrix in matrices] for path, matrices in alone.items()}
    step_alone = stepper(single)
    naive, naive_state = at, single.init(at)
    for seed in range(1, 4):
        gradients = drawn(seed, scale=10.0 ** (2 - seed))
        at, opt_state = step(at, opt_state, gradients)
        naive, naive_state = stepper(single)(naive, naive_state, gradients)
        for path, matrices in alone.items():
            cut = gradients[path].reshape(sizes[path])
            moved = [step_alone(*given) for given in zip(matrices, states[path], cut, strict=True)]
            alone[path], states[path] = [m for m, _ in moved], [s for _, s in moved]
    for path, leaf in at.items():
        wanted = np.stack(alone[path]).reshape(leaf.shape)
        np.testing.assert_allclose(leaf, wanted, rtol=1e-5, atol=1e-6, err_msg=path)
    assert np.max(np.abs(at["q"] - naive["q"])) > 1e-2 and np.max(np.abs(at["o"] - naive["o"])) > 1e-2


def test_adafactors_state_is_a_row_and_a_column():
    specs = {
        "q": ParamSpec((3, 128, 8, 32), "l : d : n h", normal(1.0)),
        "o": ParamSpec((3, 8, 32, 128), "l : n h : d", normal(1.0)),
        "norm": ParamSpec((3, 128), "l : : d", normal(1.0)),
    }
    optimiser = make(Optimiser("adafactor"), 10, specs)
    state = jax.eval_shape(optimiser.init, params.abstract(specs))
    shapes = {path: sorted(leaf.shape for leaf in jax.tree.leaves(state[1][path])) for path in specs}
    for path in ("q", "o"):
        assert {shape for shape in shapes[path] if math.prod(shape) > 3} == {(3, 128), (3, 256)}, path
    assert (3, 1, 128) in shapes["norm"]
    kept = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert kept < 0.02 * params.count(specs)


def test_adafactor_through_the_recipes_trees():
    """On the trees of a delta, where edits are leaves' parents and have holes."""
    specs, _ = delta.partition(delta.Lora(rank=2)(decoder.specs(CONFIG)))
    optimiser = make(Optimiser("adafactor", lr=0.1, schedule="constant"), 10, specs)
    ones = jax.tree.map(lambda spec: np.ones(spec.shape, np.float32), specs)
    state = jax.jit(optimiser.init)(ones)
    updates, after = jax.jit(optimiser.update)(ones, state, ones)
    assert jax.tree.structure(updates) == jax.tree.structure(ones)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for path, leaf in trees.flatten(updates).items():
        assert all(np.all(x < 0) for x in jax.tree.leaves(leaf)), path


def test_decay_with_adafactor_is_refused():
    with pytest.raises(Fault, match="adafactor here runs without weight decay"):
        make(Optimiser("adafactor", weight_decay=0.1), 10, SPECS)
