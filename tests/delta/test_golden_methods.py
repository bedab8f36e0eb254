# SPDX-License-Identifier: Apache-2.0
"""Methods against PEFT's own numbers (tools/golden/peft_methods.py): one layer's values and all gradients, where
factors start, and fourteen steps of AdaLoRA."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

from jaxpost import delta, params
from jaxpost.delta import LowRank, Magnitude, Scale, Stack, Svd, Vectors
from jaxpost.delta.budget import Budget, scores
from jaxpost.params import ParamSpec, normal

NUMBERS = load_file(Path(__file__).parent.parent / "golden" / "peft_methods" / "numbers.safetensors")
STEPS = 14


def of(case: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{case}/"): x for name, x in NUMBERS.items() if name.startswith(f"{case}/")}


def low_rank(n: dict[str, np.ndarray], scale: float, kind: str = "lora_{}.default.weight") -> LowRank:
    return LowRank(n[kind.format("A")].T, n[kind.format("B")].T, np.float32(scale))


def edits() -> dict[str, tuple]:
    """By case, the edit, and what PEFT calls the gradients of its trained fields, with our layout."""
    lora, dora, table, vera, svd = (of(name) for name in ("lora", "dora", "dora_table", "vera", "adalora_one"))
    m, embedding = "lora_magnitude_vector.default.weight", "lora_embedding_{}.default"
    weight = ("lora_A.default.weight", "lora_B.default.weight")
    return {
        "lora": (low_rank(lora, 4 / 3), weight),
        "rslora": (low_rank(of("rslora"), 4 / 3**0.5), weight),
        "dora": (Stack((low_rank(dora, 4 / 3), Magnitude(dora[m][None]))), (*weight, m)),
        "dora_table": (
            Stack((low_rank(table, 4 / 3, embedding), Magnitude(table[m][None]))),
            (embedding.format("A"), embedding.format("B"), m),
        ),
        "ia3_out": (Scale(of("ia3_out")["ia3_l.default"].T, "out"), ("ia3_l.default",)),
        "ia3_in": (Scale(of("ia3_in")["ia3_l.default"].T, "in"), ("ia3_l.default",)),
        "vera": (
            Vectors(vera["a"].T, vera["b"].T, vera["vera_lambda_d.default"], vera["vera_lambda_b.default"][None]),
            ("vera_lambda_d.default", "vera_lambda_b.default"),
        ),
        "adalora_one": (
            Svd(
                svd["lora_A.default"].T,
                svd["lora_E.default"][:, 0],
                svd["lora_B.default"].T,
                np.float32(8 / (4 + 1e-5)),
            ),
            ("lora_A.default", "lora_E.default", "lora_B.default"),
        ),
    }


@pytest.mark.parametrize("case", edits())
def test_values_and_gradients_of_one_layer(case):
    n, (edit, names) = of(case), edits()[case]
    table = case.endswith("table")
    trainable, fixed = delta.partition({"w": jax.tree.map(jnp.asarray, edit)})
    base = {"w": jnp.asarray(n["w"] if table else n["w"].T)}

    def value(trainable, x):
        w = delta.bind(base, delta.combine(trainable, fixed))["w"]
        y = delta.take(w, x) if table else delta.einsum("sd,df->sf", x, w)
        return jnp.sum(y * n["cotangent"]), y

    wanted = (0,) if table else (0, 1)
    (_, y), gradients = jax.value_and_grad(value, wanted, has_aux=True)(trainable, jnp.asarray(n["x"]))
    np.testing.assert_allclose(y, n["y"], rtol=1e-5, atol=1e-5)
    if not table:
        np.testing.assert_allclose(gradients[1], n["grad/x"], rtol=1e-5, atol=1e-5)
    leaves = jax.tree.leaves(gradients[0])
    assert len(leaves) == len(names)
    for leaf, name in zip(leaves, names, strict=True):
        there = n[f"grad/{name}"].T.reshape(leaf.shape)
        np.testing.assert_allclose(leaf, there, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", ["dora", "dora_table"])
def test_a_magnitude_starts_as_the_norm(case):
    n = of(case)
    w = jnp.asarray(n["w"] if case.endswith("table") else n["w"].T)
    specs = {"w": ParamSpec(w.shape, ": d : f", normal(1.0))}
    method = delta.Dora(rank=2, targets=("w",))
    start = params.init(method(specs), jax.random.key(0))
    begun = method.start(start, delta.Given({"w": w}, jax.random.key(0)))["w"]
    there = n["start/lora_magnitude_vector.default.weight"]
    np.testing.assert_allclose(begun.edits[-1].m[0], there, rtol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_factors_from_the_weight(init):
    n = of(init)
    w = jnp.asarray(n["w"].T)
    method = delta.Lora(rank=3, alpha=4.0, targets=("w",), init=init)
    specs = {"w": ParamSpec(w.shape, ": d : f", normal(1.0))}
    start = params.init(method(specs), jax.random.key(0))
    off, on = method.start(start, delta.Given({"w": w}, jax.random.key(0)))["w"].edits
    np.testing.assert_array_equal(off.a, on.a)
    sign = np.sign(np.sum(on.a * n["a"].T, 0))  # of each pair of vectors, which no decomposition fixes
    np.testing.assert_allclose(on.a * sign[None], n["a"].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(on.b * sign[:, None], n["b"].T, rtol=1e-4, atol=1e-5)
    rest = delta.dense(delta.Bound(w, off))
    np.testing.assert_allclose(rest, n["rest"].T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(delta.dense(delta.Bound(rest, on)), w, rtol=1e-4, atol=1e-5)


def trajectory():
    """The three layers of the golden run in two leaves: the two that are square stacked, as layers are."""
    n = of("adalora")

    def edit(where: str, layers: tuple[str, ...]) -> Svd:
        p, lam, q = (np.stack([n[f"{where}/{layer}/{part}"] for layer in layers]) for part in "AEB")
        p, q = (jnp.asarray(np.swapaxes(x, -1, -2)) for x in (p, q))
        return Svd(p, jnp.asarray(lam[..., 0]), q, jnp.full(len(layers), 8 / (4 + 1e-5)))

    def delta_at(where: str) -> dict[str, Svd]:
        return {"square": edit(where, ("one", "two")), "last": edit(where, ("last",))}

    base = {
        "square": jnp.stack([n["w/one"].T, n["w/two"].T]),
        "last": jnp.asarray(n["w/last"].T)[None],
    }
    specs = {path: ParamSpec(w.shape, "l : d : f", normal(1.0)) for path, w in base.items()}
    method = delta.AdaLora(4, 2, targets=("square", "last"), warmup=2, settle=3, every=2)
    made = params.init(method(specs), jax.random.key(0))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, delta_at("start"))
    np.testing.assert_allclose(made["square"].scale, delta_at("start")["square"].scale)
    optimiser = method.optimiser(optax.adam(1e-2), delta.partition(method(specs))[0], STEPS)
    trainable, fixed = delta.partition(delta_at("start"))

    def loss(trainable):
        w = delta.bind(base, delta.combine(trainable, fixed))
        x = jnp.asarray(n["x"])
        for i in range(2):
            x = jnp.tanh(delta.einsum("sd,df->sf", x, jax.tree.map(lambda leaf, i=i: leaf[i], w["square"])))
        y = delta.einsum("sd,df->sf", x, jax.tree.map(lambda leaf: leaf[0], w["last"]))
        return jnp.mean((y - n["aim"]) ** 2)

    @jax.jit
    def step(trainable, state):
        updates, state = optimiser.update(jax.grad(loss)(trainable), state, trainable)
        return optax.apply_updates(trainable, updates), state

    return n, delta_at, trainable, fixed, optimiser, step, method


def test_fourteen_steps_of_adalora():
    n, delta_at, trainable, fixed, optimiser, step, method = trajectory()
    state, done = optimiser.init(trainable), []
    for _ in range(STEPS):
        trainable, state = step(trainable, state)
        done.append(trainable)
    for number in range(STEPS):
        at = {layer: {part: n[f"path/{layer}/{part}"][number] for part in "AEB"} for layer in ("one", "two", "last")}
        for layer, (path, i) in {"one": ("square", 0), "two": ("square", 1), "last": ("last", 0)}.items():
            ours = done[number][path]
            lam = np.asarray(ours.lam[i])
            np.testing.assert_array_equal(lam == 0, at[layer]["E"][:, 0] == 0, f"zeroed at step {number}")
            np.testing.assert_allclose(lam, at[layer]["E"][:, 0], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(ours.p[i], at[layer]["A"].T, rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(ours.q[i], at[layer]["B"].T, rtol=1e-3, atol=1e-5)
    wanted = {name: n[f"path/{name}/E"][-1][:, 0] != 0 for name in ("one", "two", "last")}
    assert {sum(left) for left in wanted.values()} > {1}, "the ranks must differ"
    told = method.facts(delta.combine(trainable, fixed))
    ranks = {name: int(sum(left)) for name, left in wanted.items()}
    assert told == {"final ranks": f"6 of 12: last {ranks['last']}, square {ranks['one']} {ranks['two']}"}


def test_the_budget_and_the_averages_are_those_of_peft():
    n, delta_at, trainable, fixed, optimiser, step, _ = trajectory()
    zeroed, chosen = Budget(12, 6, warmup=2, last=STEPS - 3, every=2).table()
    np.testing.assert_array_equal(12 - zeroed, n["path/budget"][: STEPS - 2])
    assert np.flatnonzero(chosen).tolist() == [4, 6, 8, 10, 11]
    state = optimiser.init(trainable)
    for _ in range(STEPS - 3):  # PEFT forgets its averages at the step after, which decides by them
        trainable, state = step(trainable, state)
    for name in ("sensitivity", "uncertainty"):
        ours = getattr(state, name)
        for path, layers in {"square": ("one", "two"), "last": ("last",)}.items():
            for i, layer in enumerate(layers):
                for field, part in {"p": "A", "lam": "E", "q": "B"}.items():
                    there = n[f"{name}/{layer}/{part}"].T.reshape(ours[path][field][i].shape)
                    np.testing.assert_allclose(ours[path][field][i], there, rtol=2e-3, atol=1e-7)
    found = scores(jax.tree.map(jnp.multiply, state.sensitivity, state.uncertainty))
    kept = [n[f"path/{layer}/E"][STEPS - 1][:, 0] != 0 for layer in ("one", "two", "last")]
    ranked = np.sort(np.concatenate([np.asarray(x).reshape(-1) for x in found.values()]))
    np.testing.assert_array_equal(np.concatenate([*found["square"], *found["last"]]) > ranked[5], np.concatenate(kept))
