# SPDX-License-Identifier: Apache-2.0
"""What PEFT makes of several LoRA adapters of one linear map: tests/golden/merges.json.

    python tools/golden/merges.py    # needs the `parity` extra

PEFT trims and elects either factors or, by the names that end in `_svd`, changes of the weight; only the latter is a
merge of changes. At full rank its SVD leaves them as they are.
"""

import json
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model

OUT = Path(__file__).parents[2] / "tests" / "golden" / "merges.json"
IN, OF = 9, 7
RANK, ALPHAS, WEIGHTS = 2, (4.0, 3.0, 5.0), (0.7, 0.4, 1.2)
FULL = {"svd_rank": min(IN, OF)}
MERGES = {
    "cat": ({"combination_type": "cat"}, {"how": "cat"}),
    "svd": ({"combination_type": "svd", "svd_rank": 3}, {"how": "svd", "rank": 3}),
    "ties total": ({"combination_type": "ties_svd", "density": 0.3, **FULL}, {"how": "ties", "density": 0.3}),
    "ties frequency": (
        {"combination_type": "ties_svd", "density": 0.6, "majority_sign_method": "frequency", **FULL},
        {"how": "ties", "density": 0.6, "majority": "frequency"},
    ),
    "magnitude": (
        {"combination_type": "magnitude_prune_svd", "density": 0.4, **FULL},
        {"how": "magnitude", "density": 0.4},
    ),
    "ties rank 3": (
        {"combination_type": "ties_svd", "density": 0.5, "svd_rank": 3},
        {"how": "ties", "density": 0.5, "rank": 3},
    ),
    "linear": ({"combination_type": "linear"}, None),
}


class Map(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Linear(IN, OF, bias=False)


def main() -> None:
    torch.manual_seed(0)
    configs = [LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["w"]) for alpha in ALPHAS]
    model = get_peft_model(Map(), configs[0], adapter_name="0")
    for i, config in enumerate(configs[1:], start=1):
        model.add_adapter(str(i), config)
    layer = model.base_model.model.w
    adapters = []
    for i in range(len(configs)):
        a, b = layer.lora_A[str(i)].weight, layer.lora_B[str(i)].weight
        for factor in (a, b):
            torch.nn.init.normal_(factor)
        adapters.append({"a": a.tolist(), "b": b.tolist(), "scale": layer.scaling[str(i)]})
    merges = {}
    for name, (options, of) in MERGES.items():
        names = [str(i) for i in range(len(configs))]
        model.add_weighted_adapter(names, list(WEIGHTS), name.replace(" ", "_"), **options)
        merges[name] = {"of": of, "change": layer.get_delta_weight(name.replace(" ", "_")).tolist()}
    made = {"made with": f"peft {peft.__version__}, torch {torch.__version__}", "shape": [IN, OF]}
    OUT.write_text(json.dumps(made | {"weights": WEIGHTS, "adapters": adapters, "merges": merges}) + "\n")


if __name__ == "__main__":
    main()
