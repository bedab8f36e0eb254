# SPDX-License-Identifier: Apache-2.0
"""Adapters that we write, loaded by PEFT itself: the same logits. Runs where the `parity` extra is installed."""

import numpy as np
import pytest

from jaxpost import delta
from jaxpost.interop import peft as ours
from tests.interop.adapters import GOLDEN, base, logits, numbers, trained

try:
    import peft
    import torch
    import transformers
except ImportError:
    pytest.skip("needs peft, transformers and torch: install the parity extra", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend
CASES = sorted(path.parent.name for path in (GOLDEN / "peft").glob("*/numbers.safetensors"))
TOLERANCE = 1e-4


def theirs(base_name, directory, tokens):
    """PEFT's logits, with nothing missing or left over on its side."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        GOLDEN / base_name, dtype=torch.float32, attn_implementation="eager"
    )
    model = peft.PeftModel.from_pretrained(model, directory).eval()
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(np.asarray(tokens, np.int64))).logits.numpy()


@pytest.mark.parametrize("name", CASES)
def test_golden_adapters_through_us(name, tmp_path):
    base_name, tokens, golden = numbers(GOLDEN / "peft" / name)
    config, params = base(base_name)
    ours.save(tmp_path / "ours", config, ours.load(GOLDEN / "peft" / name, config, params), base_name, params)
    np.testing.assert_allclose(theirs(base_name, tmp_path / "ours", tokens), golden, rtol=0, atol=TOLERANCE)


METHODS = {
    "pissa": delta.Lora(rank=3, init="pissa"),
    "dora": delta.Dora(rank=2, targets=("q", "k", "v", "down")),
    "adalora": delta.AdaLora(rank=4, target=2, targets=("q", "k", "v", "down")),
    "experts": delta.Lora(rank=2),
}


@pytest.mark.parametrize(
    ("method", "base_name"),
    [
        *[
            (method, name)
            for method in ("pissa", "dora", "adalora")
            for name in ("llama-plain", "qwen2-window", "phi3")
        ],
        ("experts", "mixtral"),
        ("experts", "qwen3_moe-normed"),
    ],
)
def test_what_methods_here_train(method, base_name, tmp_path):
    config, params = base(base_name)
    edits = trained(config, params, METHODS[method])
    ours.save(tmp_path / "ours", config, edits, base_name, params)
    tokens = np.random.default_rng(0).integers(1, config.vocab, (2, 12))
    mine, before = (logits(config, delta.bind(params, one), tokens) for one in (edits, {}))
    assert np.max(np.abs(mine - before)) > 0.05
    found = theirs(base_name, tmp_path / "ours", tokens)
    print(f"{method} {base_name}: {np.max(np.abs(found - mine)):.1e}")
    np.testing.assert_allclose(found, mine, rtol=0, atol=TOLERANCE)
