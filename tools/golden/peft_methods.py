# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of tuning methods, made by PEFT: one layer's outputs and gradients, where factors start, and how
AdaLoRA shares its budget step by step.

Run from the checkout, in an environment with the `parity` extra; it rewrites tests/golden/peft_methods:

    python tools/golden/peft_methods.py
"""

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parent.parent.parent
SEED = 3
IN, OUT, ROWS, RANK, STEPS = 6, 5, 7, 3, 14
ADALORA = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2, "lora_alpha": 8, "orth_reg_weight": 0.5}


class Layers(torch.nn.Module):
    """Two square layers, which stack, and one of another shape; or the first of them alone, or a table."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="layers", to_dict=dict)
        if kind == "table":
            self.one = torch.nn.Embedding(IN, OUT)
        else:
            self.one = torch.nn.Linear(IN, OUT if kind == "one" else IN, bias=False)
        if kind == "three":
            self.two = torch.nn.Linear(IN, IN, bias=False)
            self.last = torch.nn.Linear(IN, OUT, bias=False)
        for weight in self.parameters():
            weight.data = 0.5 * torch.randn(weight.shape)
        self.kind = kind

    def forward(self, x: torch.Tensor, aim: torch.Tensor | None = None) -> Any:
        if self.kind != "three":
            return self.one(x)
        y = self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))
        return SimpleNamespace(loss=torch.mean((y - aim) ** 2), y=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "peft_methods")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    lora = {"target_modules": ["one"], "r": RANK, "lora_alpha": 4}
    kinds = {
        "lora": peft.LoraConfig(**lora),
        "rslora": peft.LoraConfig(**lora, use_rslora=True),
        "dora": peft.LoraConfig(**lora, use_dora=True),
        "dora_table": peft.LoraConfig(**lora, use_dora=True),
        "ia3_out": peft.IA3Config(target_modules=["one"], feedforward_modules=[]),
        "ia3_in": peft.IA3Config(target_modules=["one"], feedforward_modules=["one"]),
        "vera": peft.VeraConfig(target_modules=["one"], r=RANK),
        "adalora_one": peft.AdaLoraConfig(**ADALORA, target_modules=["one"], total_step=STEPS),
    }
    numbers: dict[str, torch.Tensor] = {}
    for name, config in kinds.items():
        numbers |= {f"{name}/{key}": value for key, value in passes(config, "table" in name).items()}
    for init in ("pissa", "olora"):
        numbers |= {f"{init}/{key}": value for key, value in starts(init, lora).items()}
    numbers |= {f"adalora/{key}": value for key, value in training().items()}
    out.mkdir(parents=True, exist_ok=True)
    made_by = f"tools/golden/peft_methods.py, seed {SEED}, peft {peft.__version__}, torch {torch.__version__}"
    save_file({k: v.contiguous() for k, v in numbers.items()}, out / "numbers.safetensors", {"made_by": made_by})


def passes(config: Any, table: bool) -> dict[str, torch.Tensor]:
    """Values, and the gradients of their sum with random weights, of one layer with random numbers everywhere."""
    model = peft.get_peft_model(Layers("table" if table else "one"), config)
    found: dict[str, torch.Tensor] = {"w": model.base_model.model.one.base_layer.weight.data.clone()}
    trained = {name.split(".one.")[1]: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if "magnitude" in name:  # as it starts, then moved
            found[f"start/{name}"] = parameter.data.clone()
        parameter.data = parameter.data + 0.3 * torch.randn(parameter.shape)
    if config.peft_type == "VERA":
        layer = model.base_model.model.one
        found |= {"a": layer.vera_A["default"].clone(), "b": layer.vera_B["default"].clone()}
    x = torch.randint(IN, (ROWS,)) if table else torch.randn(ROWS, IN, requires_grad=True)
    y = model(x)
    cotangent = torch.randn(y.shape)
    torch.sum(y * cotangent).backward()
    found |= {"x": x.detach(), "y": y.detach(), "cotangent": cotangent}
    found |= {} if table else {"grad/x": x.grad}
    found |= {name: parameter.data.clone() for name, parameter in trained.items()}
    return found | {f"grad/{name}": parameter.grad for name, parameter in trained.items()}


def starts(init: str, lora: dict[str, Any]) -> dict[str, torch.Tensor]:
    model = Layers("one")
    w = model.one.weight.data.clone()
    layer = peft.get_peft_model(model, peft.LoraConfig(**lora, init_lora_weights=init)).base_model.model.one
    factors = {"a": layer.lora_A["default"].weight.data, "b": layer.lora_B["default"].weight.data}
    return {"w": w, "rest": layer.base_layer.weight.data, **factors}


def training() -> dict[str, torch.Tensor]:
    """All parameters behind every step of Adam and what AdaLoRA then zeroes, with the averages that it goes by."""
    targets = ["one", "two", "last"]
    config = peft.AdaLoraConfig(**ADALORA, target_modules=targets, total_step=STEPS)
    model = peft.get_peft_model(Layers("three"), config)
    found = {f"w/{name}": getattr(model.base_model.model, name).base_layer.weight.data.clone() for name in targets}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    found |= {f"start/{_short(name)}": parameter.data.clone() for name, parameter in trained.items()}
    x, aim = torch.randn(ROWS, IN), torch.randn(ROWS, OUT)
    found |= {"x": x, "aim": aim}
    optimiser, allocator = torch.optim.Adam(trained.values(), 1e-2), model.base_model.rankallocator
    path: dict[str, list[torch.Tensor]] = {}
    averages: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        loss = model.base_model(x, aim).loss  # which adds the penalty; a model without a task would go around it
        loss.backward()
        optimiser.step()
        model.base_model.update_and_allocate(step)
        optimiser.zero_grad()
        budget = torch.tensor(allocator.budget_schedule(step)[0])
        for name, value in {"loss": loss.detach(), "budget": budget, **trained}.items():
            path.setdefault(f"path/{_short(name)}", []).append(value.data.clone())
        if allocator.exp_avg_ipt:
            averages = {f"sensitivity/{_short(n)}": v.clone() for n, v in allocator.exp_avg_ipt.items()}
            averages |= {f"uncertainty/{_short(n)}": v.clone() for n, v in allocator.exp_avg_unc.items()}
    return found | averages | {name: torch.stack(values) for name, values in path.items()}


def _short(name: str) -> str:
    """one/A of base_model.model.one.lora_A.default."""
    return name.removeprefix("base_model.model.").removesuffix(".default").replace(".lora_", "/")


if __name__ == "__main__":
    main()
