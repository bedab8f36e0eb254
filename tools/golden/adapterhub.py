# SPDX-License-Identifier: Apache-2.0
"""Golden adapters of AdapterHub's library (`adapters`), as it saves them, with its logits.

Run from the checkout, in an environment with adapters 1.3 and torch (it wants version 4 of transformers, so the
`parity` extra cannot hold it); it rewrites tests/golden/adapterhub (or the cases named):

    python tools/golden/adapterhub.py [CASE ...]

As in `peft_adapters.py` an adapter is random, saved, and loaded anew, and every tensor of it must show in the logits.
With --back DIRECTORY it says instead how far the logits of what we wrote (DIRECTORY/CASE) are from the golden ones.
"""

import argparse
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import adapters  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from adapters import AdapterPlusConfig, BnConfig, DoubleSeqBnConfig, ParBnConfig, SeqBnConfig  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

GOLDEN = Path(__file__).parent.parent.parent / "tests" / "golden"
ROWS, LENGTH = 2, 12
SHOWN = 1e-3


@dataclass(frozen=True)
class Case:
    base: str
    config: Any
    pickled: bool = False


CASES = {
    "houlsby": Case("llama-two", DoubleSeqBnConfig(reduction_factor=4), pickled=True),
    "houlsby-gpt2": Case("gpt2", DoubleSeqBnConfig(reduction_factor=8, non_linearity="gelu", leave_out=[0])),
    "pfeiffer": Case("llama-two", SeqBnConfig(reduction_factor={"0": 8, "default": 4})),
    "pfeiffer-alone": Case("llama-two", SeqBnConfig(reduction_factor=8, original_ln_before=False, scaling=2.0)),
    "parallel": Case("llama-two", ParBnConfig(reduction_factor=4)),
    "behind_attention": Case(
        "llama-two", BnConfig(mh_adapter=True, output_adapter=False, reduction_factor=16, non_linearity="tanh")
    ),
    "pfeiffer-mistral": Case("mistral-plain", SeqBnConfig(mh_adapter=True, reduction_factor=8)),
    "parallel-gpt2": Case("gpt2", ParBnConfig(mh_adapter=True, reduction_factor=8, scaling="learned")),
    # Layers are dropped in training alone, and that would want torchvision.
    "plus-gpt2": Case("gpt2", AdapterPlusConfig(reduction_factor=8, stochastic_depth=0.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="all by default")
    parser.add_argument("--back", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for number, (name, case) in enumerate(CASES.items()):
        if arguments.cases and name not in arguments.cases:
            continue
        if arguments.back:
            if (arguments.back / name).is_dir():
                golden = load_file(GOLDEN / "adapterhub" / name / "numbers.safetensors")
                off = logits(loaded(case, arguments.back / name), golden["tokens"].long()) - golden["logits"]
                print(f"{name}: off by {off.abs().max().item():.1e}", flush=True)
            continue
        torch.manual_seed(number)
        print(f"{name}: {make(case, GOLDEN / 'adapterhub' / name)}", flush=True)


def base(name: str) -> Any:
    config = AutoConfig.from_pretrained(GOLDEN / name)
    if rope := getattr(config, "rope_parameters", None):  # where version 5 writes it, and 4 does not look
        config.rope_theta = rope["rope_theta"]
    options = {"config": config, "dtype": torch.float32, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / name, **options).eval()
    adapters.init(model)
    return model


def loaded(case: Case, directory: Path) -> Any:
    model = base(case.base)
    safe = (directory / "adapter.safetensors").is_file()
    model.set_active_adapters(model.load_adapter(str(directory), use_safetensors=safe))
    return model.eval()


def make(case: Case, directory: Path) -> str:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    model = base(case.base)
    model.add_adapter("ours", config=case.config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".adapters.ours." in name:
                weight.copy_((0.3 if weight.ndim > 1 else 0.2) * torch.randn_like(weight))
    model.save_adapter(str(directory), "ours", use_safetensors=not case.pickled)
    file = directory / "adapter_config.json"
    said = json.loads(file.read_text()) | {"model_name": case.base}
    file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
    for head in directory.glob("*head*"):
        head.unlink()
    tokens = torch.randint(1, model.config.vocab_size, (ROWS, LENGTH))
    found = logits(loaded(case, directory), tokens)
    plain = logits(base(case.base), tokens)
    if fault := hidden(case, directory, tokens, found):
        raise SystemExit(f"{directory.name}: {fault}")
    made_by = (
        f"python tools/golden/adapterhub.py {directory.name} (torch {torch.__version__}, transformers "
        f"{transformers.__version__}, adapters {adapters.__version__})"
    )
    numbers = {"tokens": tokens.int(), "logits": found}
    save_file(numbers, directory / "numbers.safetensors", metadata={"made_by": made_by, "base": case.base})
    size = sum(file.stat().st_size for file in directory.iterdir())
    return f"{size / 1e3:.0f} kB, moves logits by {(found - plain).abs().max().item():.1f}"


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits.float()


def hidden(case: Case, directory: Path, tokens: torch.Tensor, found: torch.Tensor) -> str | None:
    """The first tensor of a loaded adapter that does not show in the logits."""
    model = loaded(case, directory)
    noise = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".adapters." not in name:
            continue
        kept = weight.detach().clone()
        with torch.no_grad():
            weight += 0.3 * torch.randn(kept.shape, generator=noise)
            shown = (logits(model, tokens) - found).abs().max().item() >= SHOWN
            weight.copy_(kept)
        if not shown:
            return f"{name} does not show"
    return None


if __name__ == "__main__":
    main()
