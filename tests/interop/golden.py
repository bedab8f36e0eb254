# SPDX-License-Identifier: Apache-2.0
"""Our side of the golden numbers (tests/golden/README.md): each case run by us, and how far off we are."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from jaxpost.interop import load, save
from jaxpost.kernels.attention import Rows
from jaxpost.losses import cross_entropy, masked_mean
from jaxpost.models.decoder import Decoder, logits
from jaxpost.sample import Sampling
from jaxpost.sample import decode as sample

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = (
    "llama-plain", "llama-tied", "llama-biased", "llama-two",
    "llama-llama3", "llama-linear", "llama-dynamic", "llama-yarn", "llama-yarn_untruncated",
    "mistral-plain", "mistral-window", "qwen2-tied", "qwen2-window", "qwen3",
    "gemma", "gemma2", "gemma3", "gpt2", "phi3", "phi3-longrope",
    "mixtral", "qwen3_moe-normed", "qwen3_moe-sparse",
)  # fmt: skip
LAYOUTS = ("right", "left", "packed")
NEW = 12


def tensors(directory: Path) -> dict[str, np.ndarray]:
    """What a model directory holds, without the rotary frequencies that old ones repeat."""
    files = sorted(directory.glob("model*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith("rotary_emb.inv_freq")}


def numbers(name: str) -> dict[str, np.ndarray]:
    return load_file(GOLDEN / name / "numbers.safetensors")


def _completion_loss(params: Any, config: Decoder, tokens: Any, rows: Rows, mask: Any) -> Any:
    out = logits(config, params, tokens, rows)
    return masked_mean(cross_entropy(out[:, :-1], tokens[:, 1:]), mask[:, 1:]), out


def _greedy(config: Decoder, params: Any, tokens: Any, lengths: Any) -> Any:
    batch, width = tokens.shape
    each = jnp.arange(batch)
    seats = sample.Seats(each, each, each, each, jnp.full(batch, NEW))
    read, nothing = sample.prefill(config, params, tokens, lengths), sample.begin(config, batch, width + NEW)

    def step(state: Any, _: Any) -> Any:
        after, tokens, _ = sample.decode(config, params, state, each >= 0, Sampling(), jnp.zeros(0, jnp.int32), 1)
        return after, (tokens[:, 0], state.logits)

    state: Any = sample.place(nothing, read, seats, jax.random.key(0))
    _, (tokens, steps) = jax.lax.scan(step, state, None, NEW)
    return tokens.T, jnp.swapaxes(steps, 0, 1)


_backward = jax.jit(jax.value_and_grad(_completion_loss, has_aux=True), static_argnums=1)
_decoded = jax.jit(_greedy, static_argnums=0)


class Ours:
    """One golden case, run by us in float32. All layouts stand in one batch: each example padded on the right (rows 0
    to 2), padded on the left (3 to 5), and all of them packed into one row."""

    def __init__(self, name: str):
        self.directory, self.numbers = GOLDEN / name, numbers(name)
        self.config, self.params = load(self.directory, dtype="float32")
        self.lengths = self.numbers["lengths"]
        self.real = np.arange(self.numbers["tokens"].shape[1]) < self.lengths[:, None]
        (self.loss, self.logits), self.grads = _backward(self.params, self.config, *self.batch())

    def batch(self) -> tuple[Any, ...]:
        """Tokens, rows and what the loss counts: completions, which begin behind a third of an example, in the rows
        that are padded on the right."""
        width, count = sum(self.lengths), len(self.lengths)
        tokens, segments, positions = np.zeros((3, 2 * count + 1, width), np.int32)
        mask, start = np.zeros((2 * count + 1, width), np.float32), 0
        for i, length in enumerate(self.lengths):
            places = {i: slice(length), count + i: slice(width - length, width)}
            places[2 * count] = slice(start, start + length)
            for row, place in places.items():
                tokens[row, place] = self.numbers["tokens"][i, :length]
                positions[row, place] = np.arange(length)
                segments[row, place] = i + 1
            mask[i, length // 3 : length] = 1
            start += length
        return jnp.asarray(tokens), Rows(jnp.asarray(segments), jnp.asarray(positions)), jnp.asarray(mask)

    def of(self, layout: str) -> np.ndarray:
        """Logits of the real tokens, one example behind the other."""
        count, width = len(self.lengths), sum(self.lengths)
        if layout == "packed":
            return np.asarray(self.logits[-1])
        ends = {"right": self.lengths, "left": [width] * count}[layout]
        first = LAYOUTS.index(layout) * count
        rows = enumerate(zip(ends, self.lengths, strict=True), first)
        return np.concatenate([self.logits[row, end - length : end] for row, (end, length) in rows])

    def logits_error(self, layout: str) -> float:
        """The largest difference from what transformers computes of the same layout; of each example alone for packed
        rows, which it does not know, and where its batches would go by their longest example."""
        theirs = self.numbers.get(f"{layout}/logits", self.numbers["alone/logits"])
        return float(np.max(np.abs(self.of(layout) - theirs)))

    def alone_error(self) -> float:
        return float(np.max(np.abs(self.of("right") - self.numbers["alone/logits"])))

    def loss_error(self) -> float:
        return abs(float(self.loss) - float(self.numbers["loss"]))

    def gradient_errors(self, scratch: Path) -> dict[str, float]:
        """Of each stored tensor, how far the norm of its gradient is off, relative to that. Gradients take the way of
        the weights to disk, so that they are split and joined alike."""
        save(scratch, self.config, self.grads)
        norms = {name: np.linalg.norm(tensor.astype(np.float64)) for name, tensor in tensors(scratch).items()}
        theirs = dict(zip(sorted(tensors(self.directory)), self.numbers["grad_norms"], strict=True))
        assert norms.keys() == theirs.keys()
        return {name: float(abs(norms[name] - norm) / norm) for name, norm in theirs.items()}

    def continued(self) -> tuple[np.ndarray, float]:
        """The greedy tokens, and how far the logits that chose them are off: read from the cache, a token at a time."""
        prompts = jnp.asarray(self.numbers["tokens"]), jnp.asarray(self.lengths)
        tokens, steps = _decoded(self.config, self.params, *prompts)
        return np.asarray(tokens), float(np.max(np.abs(steps - self.numbers["greedy/logits"])))
