# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of Llama models, made by transformers: tiny random checkpoints, logits, losses, gradient norms.

Run from the checkout, in an environment with the `parity` extra; it rewrites tests/golden/llama:

    python tools/golden/llama.py
"""

import argparse
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

ROOT = Path(__file__).parent.parent.parent
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,  # large enough that every part of the model shows in the logits
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # at these sizes: wavelengths of all three kinds
}
# name: (config, save in shards of, type of the saved weights)
CASES = {
    "plain": (LlamaConfig(**SIZES), None, torch.float32),
    "tied": (LlamaConfig(**SIZES | {"tie_word_embeddings": True, "num_key_value_heads": 2}), None, torch.float32),
    "llama3": (
        LlamaConfig(**SIZES | {"head_dim": 12, "num_key_value_heads": 1, "rope_parameters": LLAMA3}),
        "20KB",
        torch.float32,
    ),
    "biased": (LlamaConfig(**SIZES | {"attention_bias": True, "mlp_bias": True}), None, torch.float32),
    "mistral": (MistralConfig(**SIZES | {"num_key_value_heads": 2, "sliding_window": None}), None, torch.bfloat16),
}
LENGTHS = (24, 9, 17)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "llama")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    for seed, (name, (config, shard, dtype)) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        shutil.rmtree(out / name, ignore_errors=True)
        kind = MistralForCausalLM if isinstance(config, MistralConfig) else LlamaForCausalLM
        model = randomised(kind(config)).to(dtype)
        model.save_pretrained(out / name, **{"max_shard_size": shard} if shard else {})
        (out / name / "generation_config.json").unlink(missing_ok=True)
        made = (
            f"python tools/golden/llama.py (seed {seed}, "
            f"torch {torch.__version__}, transformers {transformers.__version__})"
        )
        # Read back rather than converted: converting to bfloat16 has rounded the rotary frequencies too.
        model = kind.from_pretrained(out / name, dtype=torch.float32, attn_implementation="eager")
        save_file(numbers(model), out / name / "numbers.safetensors", metadata={"made_by": made})


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Norms and biases start at ones and zeros, which would hide mistakes."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(("norm" in name) + 0.3 * torch.randn_like(weight))
    return model


def numbers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Logits and mean token losses of a full batch and of one padded on the right, gradient norms of the latter."""
    tokens = torch.randint(0, model.config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        plain = model(input_ids=tokens, labels=tokens)
    padded = model(input_ids=tokens * mask, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100))
    padded.loss.backward()
    found = {
        "tokens": tokens.int(),
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "plain/logits": plain.logits,
        "plain/loss": plain.loss,
        "padded/logits": padded.logits.detach(),
        "padded/loss": padded.loss.detach(),
    }
    norms = {f"padded/grad_norm/{name}": weight.grad.norm() for name, weight in model.named_parameters()}
    return {name: tensor.contiguous() for name, tensor in (found | norms).items()}


if __name__ == "__main__":
    main()
