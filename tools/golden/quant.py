# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of NF4, made by bitsandbytes: codes and dequantised values, and a tiny checkpoint saved in four bits.

Run from the checkout, in an environment with the `parity` extra and bitsandbytes 0.50.2; it rewrites
tests/golden/quant:

    python tools/golden/quant.py
"""

import tempfile
from pathlib import Path

import bitsandbytes
import torch
import transformers
from bitsandbytes import functional
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

OUT = Path(__file__).parent.parent.parent / "tests" / "golden" / "quant"
MADE_BY = (
    f"python tools/golden/quant.py (torch {torch.__version__}, transformers {transformers.__version__}, "
    f"bitsandbytes {bitsandbytes.__version__})"
)
MODELS = {"nested": True, "plain": False}
SHOWN = ("model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.o_proj")


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(matrix(), OUT / "matrix.safetensors", {"made_by": MADE_BY})
    for name, double in MODELS.items():
        model(OUT / name, double)


def matrix() -> dict[str, torch.Tensor]:
    """A matrix `[out, in]` with a row of zeros, one much larger than the others, ties and the levels themselves; and
    what `quantize_4bit` makes of it, with and without quantised block maxima."""
    torch.manual_seed(0)
    w = torch.randn(80, 256) * 0.02
    w[0] = 0
    w[3] *= 50
    levels = functional.get_4bit_type("nf4", "cpu")
    w[5, :16] = levels
    w[6, :15] = (levels[1:] + levels[:-1]) / 2
    w[6, 15] = -1
    made = {"w": w, "dynamic": functional.create_dynamic_map()}
    for name, nested in {"single": False, "double": True}.items():
        codes, state = functional.quantize_4bit(w, blocksize=64, compress_statistics=nested, quant_type="nf4")
        made |= {f"{name}/codes": codes, f"{name}/absmax": state.absmax}
        if nested:
            made |= {f"{name}/nested": state.state2.absmax, f"{name}/offset": state.offset}
        state.dtype = torch.float32 if nested else torch.bfloat16
        made[f"{name}/values"] = functional.dequantize_4bit(codes, state)
    return {name: x.contiguous() for name, x in made.items()}


def model(directory: Path, double: bool) -> None:
    """A tiny Llama that is loaded in four bits and saved, some of its dequantised weights, and its logits."""
    torch.manual_seed(1 + double)
    sizes = dict(vocab_size=40, hidden_size=64, intermediate_size=320, num_hidden_layers=2, max_position_embeddings=32)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    config = LlamaConfig(**sizes, **heads, tie_word_embeddings=False, dtype=torch.float32)
    whole = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for weight in whole.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        small = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=four, device_map="cpu", dtype=torch.float32, attn_implementation="eager"
        )
    small.save_pretrained(directory)
    # The logits are those of the dequantised weights in float32: on a CPU its own products are in 16 bits.
    numbers = {"tokens": torch.randint(0, 40, (2, 12))}
    for name, part in small.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            value = functional.dequantize_4bit(part.weight.data, part.weight.quant_state)
            whole.get_submodule(name).weight.data = value
            if name in SHOWN:
                numbers[f"{name}.weight"] = value
    with torch.no_grad():
        numbers["logits"] = whole(numbers["tokens"]).logits
    save_file(
        {name: x.contiguous() for name, x in numbers.items()}, directory / "numbers.safetensors", {"made_by": MADE_BY}
    )


if __name__ == "__main__":
    main()
