# SPDX-License-Identifier: Apache-2.0
"""Golden adapters: each method that PEFT has and we read, on the tiny models of `families.py`, with PEFT's logits.

Run from the checkout, in an environment with the `parity` extra; it rewrites tests/golden/peft (or the cases named):

    python tools/golden/peft_adapters.py [CASE ...]

An adapter is random, saved, and loaded anew before its logits are taken, so that they are those of what was saved. It
is only taken if every tensor of it moves some logit by more than 1e-3 when it is disturbed.
"""

import argparse
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft import (  # noqa: E402
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402

GOLDEN = Path(__file__).parent.parent.parent / "tests" / "golden"
ROWS, LENGTH = 2, 12
SHOWN = 1e-3
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    base: str
    config: Callable[[], PeftConfig]
    size: float = 0.25  # of what is drawn
    hidden: tuple[str, ...] = field(default=())  # parts of names of tensors that cannot show


def _lora(**said: object) -> Callable[[], PeftConfig]:
    given = {"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM"} | said
    return lambda: LoraConfig(**given)


def _pruned() -> PeftConfig:
    """As after its schedule: which of the triplets are left differs from weight to weight."""
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], total_step=10, task_type="CAUSAL_LM"
    )
    kept = [
        [True, False, True, True],
        [False, False, True, False],
        [True, True, True, True],
        [False, True, True, False],
    ]
    names = [f"model.layers.{n}.{name}.lora_E" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]
    config.rank_pattern = dict(zip(names, kept, strict=True))
    return config


CASES = {
    "lora": Case(
        "llama-plain",
        _lora(
            target_modules=["q_proj", "v_proj", "down_proj"],
            lora_dropout=0.1,
            rank_pattern={"down_proj": 2, "layers.1.self_attn.q_proj": 5},
            alpha_pattern={"v_proj": 9},
        ),
    ),
    "lora-rank_stabilised": Case("qwen3", _lora(target_modules="all-linear", use_rslora=True)),
    "lora-one_layer": Case(
        "qwen2-window", _lora(target_modules=["q_proj", "v_proj", "up_proj"], layers_to_transform=[2], bias="lora_only")
    ),
    "lora-biases": Case("qwen2-window", _lora(target_modules=r".*\.layers\.[02]\.self_attn\.[ko]_proj", bias="all")),
    "lora-embed_head": Case("qwen2-window", _lora(target_modules=["embed_tokens", "lm_head", "k_proj"])),
    "lora-tied": Case(
        "qwen2-tied",
        _lora(target_modules=["embed_tokens", "o_proj"], ensure_weight_tying=True),
        hidden=("base_layer", "lora_embedding"),  # saved twice, and the one read last counts
    ),
    "lora-saved": Case(
        "llama-plain", _lora(target_modules=["o_proj"], modules_to_save=["lm_head", "1.input_layernorm", "model.norm"])
    ),
    "lora-its_bias": Case("llama-plain", _lora(target_modules=["o_proj", "gate_proj"], lora_bias=True)),
    "lora-gpt2": Case(
        "gpt2", _lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, bias="lora_only")
    ),
    "lora-phi3": Case("phi3", _lora(target_modules=["qkv_proj", "gate_up_proj", "down_proj"])),
    "lora-experts": Case(
        "mixtral",
        _lora(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ),
    "lora-gemma": Case("gemma2", _lora(target_modules=ALL)),
    "dora": Case("qwen3", _lora(target_modules=["q_proj", "o_proj", "down_proj"], use_dora=True)),
    "dora-biased": Case("qwen2-window", _lora(target_modules=["k_proj", "up_proj"], use_dora=True)),
    "dora-one_layer": Case(
        "llama-plain", _lora(target_modules=["v_proj", "gate_proj"], use_dora=True, layers_to_transform=1)
    ),
    "dora-phi3": Case("phi3", _lora(target_modules=["qkv_proj"], use_dora=True, use_rslora=True)),
    "adalora": Case("llama-plain", _pruned),
    "ia3": Case(
        "llama-plain",
        lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
    ),
    "ia3-biased": Case(
        "qwen2-window",
        lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            modules_to_save=["model.norm"],
            task_type="CAUSAL_LM",
        ),
    ),
    "ia3-gpt2": Case(
        "gpt2",
        lambda: IA3Config(
            target_modules=["c_attn", "mlp.c_proj"],
            feedforward_modules=["mlp.c_proj"],
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        ),
    ),
    "prompt": Case("llama-plain", lambda: PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"), 1.0),
    "prompt-gemma": Case("gemma", lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), 1.0),
    "prompt-gemma3": Case("gemma3", lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), 1.0),
    "p_tuning": Case(
        "qwen3",
        lambda: PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16, task_type="CAUSAL_LM"),
        1.0,
    ),
    "prefix": Case("qwen3", lambda: PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), 1.0),
    "prefix-projected": Case(
        "llama-plain",
        lambda: PrefixTuningConfig(
            num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=16, task_type="CAUSAL_LM"
        ),
        1.0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=GOLDEN / "peft")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for number, (name, case) in enumerate(CASES.items()):
        if not arguments.cases or name in arguments.cases:
            torch.manual_seed(number)
            print(f"{name}: {make(case, arguments.out / name)}", flush=True)


def base(name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation="eager").eval()


def make(case: Case, directory: Path) -> str:
    shutil.rmtree(directory, ignore_errors=True)
    drawn(case, directory)
    model = PeftModel.from_pretrained(base(case.base), directory).eval()
    tokens = torch.randint(1, model.config.vocab_size, (ROWS, LENGTH))
    found = logits(model, tokens)
    plain = logits(base(case.base), tokens)
    if fault := hidden(case, directory, tokens, found):
        raise SystemExit(f"{directory.name}: {fault}")
    made_by = (
        f"python tools/golden/peft_adapters.py {directory.name} (torch {torch.__version__}, transformers "
        f"{transformers.__version__}, peft {peft.__version__})"
    )
    numbers = {"tokens": tokens.int(), "logits": found}
    save_file(numbers, directory / "numbers.safetensors", metadata={"made_by": made_by, "base": case.base})
    size = sum(file.stat().st_size for file in directory.iterdir())
    moved = (found[:, -LENGTH:] - plain).abs().max().item()
    return f"{size / 1e3:.0f} kB, moves logits by {moved:.1f}"


def drawn(case: Case, directory: Path) -> None:
    """A random adapter, as PEFT saves it."""
    config = case.config()
    pattern = getattr(config, "rank_pattern", None) if isinstance(config, AdaLoraConfig) else None
    if pattern:
        config.rank_pattern = None
    model = get_peft_model(base(case.base), config)
    config.base_model_name_or_path = case.base
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.requires_grad or "ranknum" in name:
                continue
            if any(part in name for part in ("magnitude", "ia3_l", "norm")):
                weight.mul_(1 + case.size * torch.randn_like(weight))
            elif weight.ndim > 1 and "modules_to_save" not in name:
                weight.copy_(case.size * torch.randn_like(weight))
            else:
                weight.add_(case.size * torch.randn_like(weight))
    config.rank_pattern = pattern or getattr(config, "rank_pattern", None)
    model.save_pretrained(directory)
    (directory / "README.md").unlink(missing_ok=True)
    file = directory / "adapter_config.json"
    said = json.loads(file.read_text())
    for key, value in said.items():  # sets, whose order varies
        said[key] = sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
    said["base_model_name_or_path"] = case.base
    file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits.float()


def hidden(case: Case, directory: Path, tokens: torch.Tensor, found: torch.Tensor) -> str | None:
    """The first tensor of a saved adapter that does not show in the logits."""
    file = directory / "adapter_model.safetensors"
    kept = load_file(file)
    noise = torch.Generator().manual_seed(0)
    try:
        for name, weight in kept.items():
            if any(part in name for part in case.hidden):
                continue
            changed = weight + 0.3 * max(weight.std().item(), 0.1) * torch.randn(weight.shape, generator=noise)
            save_file(kept | {name: changed}, file, metadata={"format": "pt"})
            other = PeftModel.from_pretrained(base(case.base), directory).eval()
            if (logits(other, tokens) - found).abs().max().item() < SHOWN:
                return f"{name} does not show"
    finally:
        save_file(kept, file, metadata={"format": "pt"})
    return None


if __name__ == "__main__":
    main()
