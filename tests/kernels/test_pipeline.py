# SPDX-License-Identifier: Apache-2.0
"""Training and sampling as a whole, with every kernel forced by its name (Pallas' for TPUs, interpreted, and on a GPU
those for Hopper as they are), are what they are with the references forced by theirs."""

import contextlib
import functools
import importlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from jaxpost import delta, params, shard, trees
from jaxpost.kernels.attention import Rows
from jaxpost.kernels.dispatch import forced
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.quant import Int8, Nf4, quantise_specs, quantise_tree
from jaxpost.recipes import sft
from jaxpost.recipes.assembly import assemble
from jaxpost.sample import Sampling, engine, generate, merged
from jaxpost.train.optimisers import Optimiser
from jaxpost.train.state import State
from tests.jaxprs import equations
from tests.train.tiny import copied, examples, stacked

KERNELS = {
    "attention": "splash",
    "decode_attention": "pallas_tpu",
    "lowrank_matmul": "pallas_tpu",
    "quant_matmul": "pallas_tpu",
}
HOPPER = dict.fromkeys(KERNELS, "pallas_gpu")
BY = {"kernels": KERNELS, "hopper": HOPPER, "references": dict.fromkeys(KERNELS, "reference")}
FORMATS = {"int8": Int8(), "nf4": Nf4()}
LORA = delta.Lora(rank=4)


@dataclass(frozen=True)
class Size:
    """Of a model and its rows. The least is as small as all TPU kernels take it: products with multiples of 256 in and
    out, heads of 64. Hopper's want rows and columns enough for all multiprocessors."""

    d: int = 256
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 256
    length: int = 128


LEAST, LARGE = Size(), Size(d=1024, heads=16, kv_heads=8, ffn=1024, length=4096)


def model_of(dtype, size=LEAST):
    return Decoder(
        vocab=64, d=size.d, layers=2, heads=size.heads, kv_heads=size.kv_heads, head_size=64, ffn=size.ffn,
        max_length=size.length, dtype=dtype,
    )  # fmt: skip


def whole(edits, scale):
    """A delta of low-rank updates whose second factors are not zero, so that the first ones matter."""
    draw = functools.partial(jax.random.normal, jax.random.key(2))
    return {
        path: edit.replace(b=jax.device_put(scale * draw(edit.b.shape), edit.b.sharding))
        for path, edit in edits.items()
    }


@functools.cache
def stored(dtype, format, size=LEAST):
    """The specs of the weights as they are stored, and weights that all matter."""
    specs = params.filled(decoder.specs(model_of(dtype, size)))
    flat = trees.flatten(params.init(decoder.specs(model_of(dtype, size)), jax.random.key(0)))
    weights = trees.unflatten({path: w if w is None or "norm" in path else 2 * w for path, w in flat.items()})
    if format == "plain":
        return specs, weights
    return quantise_specs(specs, FORMATS[format]), quantise_tree(weights, specs, FORMATS[format])


@contextlib.contextmanager
def counted():
    """Counts which implementation served which operation, while they do what they did."""
    found: Counter[tuple[str, str]] = Counter()

    def counting(operation, name, implementation):
        def call(*args, **kwargs):
            result = implementation(*args, **kwargs)
            found[operation, name] += 1
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for operation in KERNELS:
            known = importlib.import_module(f"jaxpost.kernels.{operation}.api").IMPLEMENTATIONS
            for name, implementation in list(known.items()):
                patch.setitem(known, name, counting(operation, name, implementation))
        yield found


def kernels(traced):
    """How often the kernel of each operation stands in a traced program, in what the compiler does not drop."""
    whole = traced.jaxpr.jaxpr
    used, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars))
    found = Counter()
    for equation in equations(used):
        if equation.primitive.name in ("pallas_call", "mpmd_map"):
            name = equation.params["name"].replace("splash", "attention")
            found[next(operation for operation in KERNELS if name.startswith(operation))] += 1
    return found


@dataclass
class Ran:
    """What came out, which kernels each program is made of, and who served."""

    out: Any
    programs: dict[str, Counter[str]]
    served: Counter[tuple[str, str]]


STEPS = 3
DESCENT = Optimiser("sgd", lr=0.04, schedule="constant", clip=0.0)
"""What is learned is a sum of gradients: Adam would divide the smallest by their own size, noise and all."""


def batch_of(step, rows, length):
    """Rows of which three are packed, and all but one end with padding."""
    times = length // 128
    lengths = [60 * times, 40 * times, 20 * times], [length], [9 * times] * 8, [100 * times, 20 * times]
    return stacked([examples(row, 10 * step + number) for number, row in enumerate(lengths[:rows])], length)


@functools.cache
def trained(dtype, format, rows, microbatches, devices, by, size=LEAST):
    """Losses of some steps of the recipe, and by how much each factor of the delta has moved."""
    specs, weights = stored(dtype, format, size)
    mesh = shard.make_mesh(shard.MeshShape(1, devices, 1), jax.devices()[:devices])
    with jax.set_mesh(mesh), counted() as served, forced(interpreted=by == "kernels", **BY[by]):
        train = sft.Training(steps=STEPS, microbatches=microbatches, remat="most")
        config = sft.Config("", delta=LORA, batches=sft.Batches(rows, size.length), optim=DESCENT, train=train)
        assembly = assemble(model_of(dtype, size), specs, LORA, DESCENT, STEPS, mesh)
        program = sft.programs(config, assembly)["step"]
        traced = program.call.trace(*program.arguments)
        step = traced.lower().compile()
        base = jax.device_put(weights, shard.shardings(specs, mesh))
        state, fixed = assembly.make(jax.random.key(1), base)
        state = State(state.step, whole(state.trainable, 0.02), state.opt_state, state.extra)
        begun, losses = copied(state.trainable), []
        for number in range(STEPS):
            batch = jax.device_put(batch_of(number, rows, size.length), shard.rows(mesh))
            state, metrics = step(state, {"base": base, "fixed": fixed}, batch, jax.random.key(2))
            losses.append(float(metrics["loss"]))
    moved = jax.tree.leaves(jax.tree.map(np.subtract, copied(state.trainable), begun))
    return Ran((np.array(losses), moved), {"step": kernels(traced)}, served)


def off(found, wanted):
    """How far off the worst of some arrays is, as a share of its norm."""
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True))


# How far losses (of about four) may be apart, and by what share of its norm what a factor has learned. In bfloat16 a
# number is off by a 512th of itself, and kernels round a sum where references round its terms.
ROOM = {"float32": (1e-5, 1e-4), "bfloat16": (4e-3, 3e-2), LARGE: (1e-2, 3e-2)}

TRAINING = {
    # These kernels do not compute in float32: attention alone is one's there.
    "float32": ("float32", "plain", 4, 2, 1, {"attention": 2}),
    "bfloat16": ("bfloat16", "plain", 4, 2, 1, {"attention": 2, "lowrank_matmul": 14}),
    # Of 256 tokens at a time a product with a quantised matrix is by its own kernel, of 512 dequantised.
    "int8": ("bfloat16", "int8", 4, 1, 1, {"attention": 2, "lowrank_matmul": 14}),
    "nf4": ("bfloat16", "nf4", 2, 1, 1, {"attention": 2, "quant_matmul": 7}),
    # Each device has its own rows, and for computing the whole weights.
    "two devices": ("bfloat16", "plain", 4, 1, 2, {"attention": 2, "lowrank_matmul": 14}),
    "int8 on two devices": ("bfloat16", "int8", 4, 1, 2, {"attention": 2, "quant_matmul": 7}),
}


HOPPER_TRAINING = {
    "bfloat16": ("bfloat16", "plain", 4, 1, 1, {"attention": 3, "lowrank_matmul": 14}),
    "int8": ("bfloat16", "int8", 4, 1, 1, {"attention": 3, "lowrank_matmul": 14}),
    "nf4": ("bfloat16", "nf4", 4, 1, 1, {"attention": 3, "lowrank_matmul": 14}),
    # With half the rows products with keys' and values' weights are too small, and XLA's.
    "two devices": ("bfloat16", "plain", 4, 1, 2, {"attention": 3, "lowrank_matmul": 10}),
    "int8 on two devices": ("bfloat16", "int8", 4, 1, 2, {"attention": 3, "lowrank_matmul": 10}),
}


def check_who_served(found, wanted, operations, names=KERNELS):
    assert set(found.served) == {(operation, names[operation]) for operation in operations}
    assert set(wanted.served) >= {(operation, "reference") for operation in operations}
    assert {implementation for _, implementation in wanted.served} == {"reference"}


@pytest.mark.parametrize("name", TRAINING)
def test_training(name):
    """Packed rows in microbatches: a layer's seven products, forwards and (but for quantised ones of few tokens)
    backwards, and its attention."""
    *case, expected = TRAINING[name]
    check_training(case, expected, "kernels", LEAST)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="pallas_gpu: its kernels run on a Hopper GPU only")
@pytest.mark.parametrize("name", HOPPER_TRAINING)
def test_training_on_a_gpu(name):
    *case, expected = HOPPER_TRAINING[name]
    if case[4] > jax.device_count():
        pytest.skip(f"pallas_gpu on {case[4]} devices: there are not so many here")
    check_training(case, expected, "hopper", LARGE)


def check_training(case, expected, by, size):
    found, wanted = trained(*case, by, size), trained(*case, "references", size)
    assert found.programs == {"step": Counter(expected)} and wanted.programs == {"step": Counter()}
    check_who_served(found, wanted, expected, BY[by])
    (losses, moved), (right, learned) = found.out, wanted.out
    assert np.all(np.isfinite(losses)) and np.ptp(losses) > 0.05
    of_losses, of_delta = ROOM[LARGE if size == LARGE else case[0]]
    np.testing.assert_allclose(losses, right, rtol=0, atol=of_losses)
    assert off(moved, learned) < of_delta


def test_in_16_bits_kernels_are_as_near_to_float32_as_references_are():
    _, right = trained(*TRAINING["float32"][:5], "references").out
    by_kernels, by_references = (
        off(trained(*TRAINING["bfloat16"][:5], by).out[1], right) for by in ("kernels", "references")
    )
    assert by_kernels < 1.25 * by_references and by_references < ROOM["bfloat16"][1]


PROMPTS = [[7, 3, 9, 30, 2], [5], list(range(11, 40)), [4, 4]]
NEW = 16


@functools.cache
def weights_of(dtype, format, how):
    """Under a delta of which every factor matters, or with it merged."""
    edits = params.init(LORA(decoder.specs(model_of(dtype))), jax.random.key(1))
    bound = delta.bind(stored(dtype, format)[1], whole(edits, 0.05))
    return merged(model_of(dtype), bound) if how == "merged" else bound


def sampled(dtype, format, how, kv, temperatures, by):
    """Completions, and how likely each of their tokens was, at each temperature."""
    config, weights, programs = model_of(dtype), weights_of(dtype, format, how), {}

    def watched(name):
        program = getattr(engine, f"_{name}")

        def call(*args):
            programs[name] = kernels(program.trace(*args))
            return program(*args)

        return call

    def completed(temperature):
        done = generate(config, weights, PROMPTS, Sampling(max_new=NEW, temperature=temperature, kv=kv))
        return np.array([each.tokens for each in done]), np.array([each.log_probs for each in done])

    with counted() as served, forced(interpreted=True, **BY[by]), pytest.MonkeyPatch.context() as patch:
        for name in ("prefill", "decode"):
            patch.setattr(engine, f"_{name}", watched(name))
        out = {temperature: completed(temperature) for temperature in temperatures}
    return Ran(out, programs, served)


def shared(found, wanted):
    """Which tokens are the same, and so are all before them."""
    return np.cumprod(found == wanted, axis=1).astype(bool)


def leads(dtype, format, how, completions):
    """By how much the logit of the likeliest token leads the next at each place, by one pass over the text."""
    texts = [[*prompt, *row] for prompt, row in zip(PROMPTS, completions.tolist(), strict=True)]
    tokens = jnp.asarray([text + [0] * (64 - len(text)) for text in texts])
    rows = Rows(jnp.ones_like(tokens), jnp.broadcast_to(jnp.arange(64), tokens.shape))
    logits: Any = jax.jit(decoder.logits, static_argnums=0)
    with forced(**BY["references"]):
        best = jnp.sort(logits(model_of(dtype), weights_of(dtype, format, how), tokens, rows).astype(jnp.float32))
    lead = np.asarray(best[..., -1] - best[..., -2])
    return np.array([row[len(prompt) - 1 :][:NEW] for prompt, row in zip(PROMPTS, lead, strict=True)])


DRAWN, GREEDY = 1.0, 0.0
LIKELY = {"float32": 1e-5, "bfloat16": 0.05}
"""How far log-probabilities may be apart."""

SAMPLING = {
    "float32": ("float32", "plain", "bound", "model", (DRAWN,), {}),
    "int8": ("bfloat16", "int8", "bound", "int8", (DRAWN, GREEDY), {"quant_matmul": 7}),
    "merged": ("bfloat16", "plain", "merged", "int8", (DRAWN, GREEDY), {}),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling(name):
    """Of what the same dice draw, the tokens' log-probabilities; what is likeliest is the same until two tokens are
    about as likely. Low-rank products of so few tokens are a kernel's only where the weight is quantised."""
    *case, expected = SAMPLING[name]
    found, wanted = (sampled(*case, by) for by in ("kernels", "references"))
    reading, writing = {"attention": 1} | expected, {"decode_attention": 1} | expected
    assert found.programs == {"prefill": Counter(reading), "decode": Counter(writing)}
    assert wanted.programs == {"prefill": Counter(), "decode": Counter()}
    check_who_served(found, wanted, reading | writing)
    for temperature, (tokens, likely) in wanted.out.items():
        own, own_likely = found.out[temperature]
        same = shared(own, tokens)
        assert same.mean() > (0.99 if case[0] == "float32" else 0.6)
        np.testing.assert_allclose(own_likely[same], likely[same], rtol=0, atol=LIKELY[case[0]])
        if temperature == GREEDY:
            lead, lengths = leads(*case[:3], tokens), same.sum(axis=1)
            parted = [lead[row, length] for row, length in enumerate(lengths) if length < NEW]
            assert np.median(lead) > 2 * LIKELY["bfloat16"] and all(each < 2 * LIKELY[case[0]] for each in parted)
