# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of every family, made by transformers: tiny random checkpoints, logits, losses, gradients, greedy
continuations.

Run from the checkout, in an environment with the `parity` extra; it rewrites tests/golden (or the cases named):

    python tools/golden/families.py [CASE ...]

A seed is taken only if its model shows what it is meant to show: every parameter and every feature named beside the
case (the norms' epsilon and the rotary base too) moves some logit by more than 1e-2 (or 1e-3: what is said to be
slight), no greedy choice and no choice of experts is closer than 1e-3, and no greedy continuation repeats one or two
tokens.
"""

import argparse
import copy
import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from cases import CASES, Case
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

ROOT = Path(__file__).parent.parent.parent
LENGTHS = (24, 10, 5)
NEW = 12
SHOWN, SLIGHT, MARGIN = 1e-2, 1e-3, 1e-3
OLD_CONFIG = {"dtype": "torch_dtype"}  # what version 4 of transformers called it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for number, (name, case) in enumerate(CASES.items()):
        if not arguments.cases or name in arguments.cases:
            print(f"{name}: {make(case, arguments.out / name, 100 * number)}", flush=True)


def make(case: Case, directory: Path, seed: int) -> str:
    """Writes the case with the first seed from this one on that shows all there is to show."""
    for attempt in range(seed, seed + 100):
        torch.manual_seed(attempt)
        model = AutoModelForCausalLM.from_config(case.config, attn_implementation="eager")
        write(randomised(model, case).to(case.dtype), case, directory)
        # Read back rather than converted: converting to 16 bits has rounded the rotary frequencies too.
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = torch.randint(1, model.config.vocab_size, (len(LENGTHS), max(LENGTHS))) * real()
        if fault := hidden(model, case, tokens):
            print(f"  seed {attempt}: {fault}", flush=True)
            continue
        found, noise = numbers(model, case, tokens, directory)
        if found is None:
            print(f"  seed {attempt}: {noise}", flush=True)
            continue
        made_by = (
            f"python tools/golden/families.py {directory.name} (seed {attempt}, "
            f"torch {torch.__version__}, transformers {transformers.__version__})"
        )
        metadata = {"made_by": made_by} | ({} if case.by_length else {"padding_moves_logits_by": f"{noise:.1e}"})
        save_file(found, directory / "numbers.safetensors", metadata=metadata)
        size = sum(file.stat().st_size for file in directory.iterdir())
        return f"{size / 1e3:.0f} kB, {metadata}"
    raise SystemExit(f"{directory.name}: no seed shows everything; make its weights larger")


def randomised(model: PreTrainedModel, case: Case) -> PreTrainedModel:
    """Norms and biases start at ones and zeros, which would hide mistakes."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))
            elif any(part in name for part in case.loud):
                weight.copy_(0.4 * torch.randn_like(weight))
    return model


def write(model: PreTrainedModel, case: Case, directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    model.save_pretrained(directory, **{"max_shard_size": case.shard} if case.shard else {})
    (directory / "generation_config.json").unlink(missing_ok=True)
    if case.old_spelling is not None:
        file = directory / "config.json"
        values = {OLD_CONFIG.get(key, key): value for key, value in json.loads(file.read_text()).items()}
        values = {key: value for key, value in values.items() if key != "rope_parameters"} | case.old_spelling
        values["transformers_version"] = "4.31.0"
        file.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n")
        weights = load_file(directory / "model.safetensors")
        turns = 10000.0 ** -(torch.arange(0, model.config.head_dim, 2) / model.config.head_dim)
        for layer in range(model.config.num_hidden_layers):  # as checkpoints of that time hold them
            weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = turns.clone()
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def real() -> torch.Tensor:
    return (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()


def alone(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits of each sequence in a batch of its own. A copy each time: some rotary embeddings remember lengths."""
    with torch.no_grad():
        rows = zip(tokens, LENGTHS, strict=True)
        return [copy.deepcopy(model)(input_ids=row[None, :length]).logits[0] for row, length in rows]


def hidden(model: PreTrainedModel, case: Case, tokens: torch.Tensor) -> str | None:
    """The first part of the model that does not show in the logits."""
    plain = torch.cat(alone(model, tokens))

    def moved(other: PreTrainedModel) -> float:
        return (torch.cat(alone(other, tokens)) - plain).abs().max().item()

    noise = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        for index in range(len(weight)) if weight.ndim == 3 else [...]:  # experts apart
            kept = weight.detach().clone()
            with torch.no_grad():
                weight[index] += 0.3 * kept[index].std() * torch.randn(kept[index].shape, generator=noise)
                shown = moved(model) >= SHOWN
                weight.copy_(kept)
            if not shown:
                return f"{name} [{index}] does not show"
    features = {name: (changes, SHOWN) for name, changes in (case.features | common(model)).items()}
    features |= {name: (changes, SLIGHT) for name, changes in case.slight.items()}
    for feature, (changes, least) in features.items():
        config = copy.deepcopy(model.config)
        for field, value in changes.items():
            setattr(config, field, value)
        other = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        other.load_state_dict(model.state_dict(), strict=False)
        if moved(other) < least:
            return f"{feature} does not show ({moved(other):.1e})"
    return None


def common(model: PreTrainedModel) -> dict[str, dict[str, object]]:
    """What the configs of all families but GPT-2 say."""
    config = model.config
    if not hasattr(config, "rms_norm_eps"):
        return {}
    rope = copy.deepcopy(config.rope_parameters)
    for part in rope.values() if "rope_theta" not in rope else [rope]:
        part["rope_theta"] *= 10
    return {"norm's epsilon": {"rms_norm_eps": 1e-6}, "rotary base": {"rope_parameters": rope}}


def numbers(
    model: PreTrainedModel, case: Case, tokens: torch.Tensor, directory: Path
) -> tuple[dict[str, torch.Tensor] | None, float | str]:
    """All numbers of a case and by how much padding moves their logits; or nothing, and why not."""
    logits = alone(model, tokens)
    loss, norms = backward(model, tokens, directory)
    chosen, steps = zip(*[greedy(model, row[:n]) for row, n in zip(tokens, LENGTHS, strict=True)], strict=True)
    if (margin := closest(torch.stack(steps), 1)) < MARGIN:
        return None, f"greedy choices as close as {margin:.1e}"
    if min(len(set(new.tolist())) for new in chosen) < 3:
        return None, "a greedy continuation of one or two tokens"
    if case.active and (margin := router_margin(model, case.active, tokens, chosen)) < MARGIN:
        return None, f"choices of experts as close as {margin:.1e}"
    found = {
        "tokens": tokens.int(),
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
        "alone/logits": torch.cat(logits),
        "loss": loss,
        "grad_norms": norms,
        "greedy/tokens": torch.stack(chosen).int(),
        "greedy/logits": torch.stack(steps),
    }
    noise = 0.0
    if not case.by_length:
        for side in ("right", "left"):
            found[f"{side}/logits"] = padded(model, tokens, side)
            noise = max(noise, (found[f"{side}/logits"] - found["alone/logits"]).abs().max().item())
        assert noise < 2e-5, f"transformers' own padding moves logits by {noise}"
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}, noise


def padded(model: PreTrainedModel, tokens: torch.Tensor, side: str) -> torch.Tensor:
    """Logits of the real tokens of one padded batch. Positions are given: transformers derives none from a mask."""
    mask = real()
    if side == "left":
        tokens, mask = (torch.stack([x.roll(-n) for x, n in zip(y, LENGTHS, strict=True)]) for y in (tokens, mask))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[mask.bool()]


def backward(model: PreTrainedModel, tokens: torch.Tensor, directory: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss of all completions (what follows a third of each sequence) and its gradient's norm for every tensor
    of the checkpoint, by name. Sequences alone: in a batch, some rotary embeddings would go by its longest."""
    model = copy.deepcopy(model)
    losses = [_completion_losses(model, row[:length]) for row, length in zip(tokens, LENGTHS, strict=True)]
    loss = torch.cat(losses).mean()
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        # transformers' own way to disk splits what it keeps fused in memory.
        model.save_pretrained(folder, state_dict=gradients)
        stored = load_file(Path(folder) / "model.safetensors")
    theirs = {name for file in directory.glob("model*.safetensors") for name in load_file(file)}
    theirs = {name for name in theirs if not name.endswith("inv_freq")}
    assert stored.keys() == theirs, stored.keys() ^ theirs
    return loss, torch.stack([stored[name].norm() for name in sorted(stored)])


def _completion_losses(model: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    start = len(row) // 3
    logits = model(input_ids=row[None]).logits[0, start - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, row[start:], reduction="none")


def greedy(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve more tokens by transformers' own generation over its cache, and the logits that chose them."""
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = None
    out = model.generate(
        prompt[None],
        attention_mask=torch.ones_like(prompt)[None],
        generation_config=transformers.GenerationConfig(
            do_sample=False, use_cache=True, max_new_tokens=NEW, pad_token_id=0,
            return_dict_in_generate=True, output_logits=True,
        ),
    )  # fmt: skip
    assert out.sequences.shape[1] == len(prompt) + NEW
    return out.sequences[0, len(prompt) :], torch.cat(out.logits)


def closest(scores: torch.Tensor, count: int) -> float:
    """How far the last of the chosen is above the first that is not."""
    best = scores.topk(count + 1, dim=-1).values
    return (best[..., -2] - best[..., -1]).min().item()


def router_margin(model: PreTrainedModel, active: int, tokens: torch.Tensor, chosen: tuple[torch.Tensor, ...]) -> float:
    margins = []
    for row, length, new in zip(tokens, LENGTHS, chosen, strict=True):
        with torch.no_grad():
            out = model(input_ids=torch.cat([row[:length], new])[None], output_router_logits=True)
        margins += [closest(layer.float(), active) for layer in out.router_logits if layer is not None]
    return min(margins)


if __name__ == "__main__":
    main()
