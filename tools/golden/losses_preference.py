# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of losses of preferences, rewards and distillation: TRL's own code on given log-probabilities,
logits and scores, with the gradients that torch finds; where TRL has none, the formula of a paper in torch.

Run from the checkout, in an environment with torch and trl (the `parity` extra); it rewrites
tests/golden/losses/preference.json:

    python tools/golden/losses_preference.py

No trainer is built: each is an empty object with the few attributes that its loss reads, and its model is a stub that
returns what is given here. So the numbers are those of the trainers' code, and of nothing else.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import torch.nn.functional as F
import trl
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

OUT = Path(__file__).parent.parent.parent / "tests" / "golden" / "losses" / "preference.json"
MADE_BY = f"python tools/golden/losses_preference.py (torch {torch.__version__}, trl {trl.__version__})"
PAIRS, LENGTH, WORDS = 5, 8, 6
DPO_SMOOTHED = {"exo_pair": 1e-3, "robust": 0.2, "aot": 0.1, "aot_unpaired": 0.1}
DPO_KINDS = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot")
DPO_KINDS += ("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")
# They go into all kinds of the difference at one place.
DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}
DIVERGED = {"alpha": ("sigmoid", "ipo", "discopop"), "forward_kl": ("sigmoid", "hinge"), "js": ("sigmoid", "exo_pair")}

cases: list[dict[str, Any]] = []


def record(name: str, source: str, leaf: torch.Tensor, loss: torch.Tensor, **facts: Any) -> None:
    """The loss (or losses) and the gradient of their sum."""
    leaf.grad = None
    loss.sum().backward()
    assert leaf.grad is not None and torch.isfinite(leaf.grad).all() and torch.isfinite(loss).all(), name
    numbers = {"loss": loss.detach().tolist(), "gradient": leaf.grad.tolist()}
    cases.append({"name": name, "source": source, **facts, **numbers})


def trainer(kind: type, **attributes: Any) -> Any:
    """One that knows nothing but what its loss reads."""
    made = kind.__new__(kind)
    same = lambda x: x  # noqa: E731
    accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, parallelism_config=None)
    shared = {"accelerator": accelerator, "_metrics": {"train": defaultdict(list)}, "aux_loss_enabled": False}
    shared |= {"_total_train_tokens": 0, "_tp_size": 1, "model": Says(torch.zeros(()))}
    shared |= {"args": SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05)}
    for key, value in {**shared, **attributes}.items():
        setattr(made, key, value)
    return made


class Says(torch.nn.Module):
    """A model whose log-probabilities are given; like TRL's fused head it says 0 where labels are ignored."""

    is_gradient_checkpointing = False

    def __init__(self, log_probs: torch.Tensor, log_squares: torch.Tensor | None = None) -> None:
        super().__init__()
        self.log_probs, self.log_squares = log_probs, log_squares

    def forward(self, labels: torch.Tensor, **_: Any) -> SimpleNamespace:
        there = labels[:, 1:] != -100
        zeros = torch.zeros(there.shape)
        said = {"log_probs": self.log_probs * there, "log_sum_sq_probs": self.log_squares, "label_mask": there}
        return SimpleNamespace(**said, entropy=zeros, mean_logits=zeros, is_top1=there & False)


def batches() -> dict[str, dict[str, torch.Tensor]]:
    """Ten answers, of each pair the chosen one in the first half; `near` the reference, and `wide` apart from it."""
    torch.manual_seed(7)
    starts, ends = torch.randint(1, 4, (2 * PAIRS, 1)), torch.randint(5, LENGTH + 2, (2 * PAIRS, 1))
    places = torch.arange(LENGTH + 1)[None]
    mask = ((places >= starts) & (places < ends)).long()
    log_probs = -0.05 - 1.5 * torch.rand(2 * PAIRS, LENGTH)
    noise = torch.randn(2 * PAIRS, LENGTH)
    squares = torch.minimum(log_probs + 0.5 * torch.randn(2 * PAIRS, LENGTH), torch.zeros(()))
    near = {"log_probs": log_probs, "reference": log_probs + 0.15 * noise}
    wide = {"log_probs": 4 * log_probs, "reference": 4 * log_probs + 3 * noise}
    return {k: {**v, "mask": mask, "log_squares": squares} for k, v in {"near": near, "wide": wide}.items()}


def dpo(batch: dict[str, torch.Tensor], on: str) -> None:
    def case(name: str, source: str = "trl DPOTrainer", ours: dict[str, Any] | None = None, **options: Any) -> None:
        settings = {"beta": 0.1, "label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "ld_alpha": None}
        settings |= {"f_alpha_divergence_coef": 0.5, "use_weighting": False, "loss_weights": None, **options}
        settings["loss_weights"] = settings["loss_weights"] or [1.0] * len(settings["loss_types"])
        leaf = batch["log_probs"].clone().requires_grad_()
        reference = Says(batch["reference"])
        made = trainer(trl.DPOTrainer, ref_model=reference, precompute_ref_logps=False, **settings)
        inputs = {"input_ids": torch.zeros_like(batch["mask"]), "completion_mask": batch["mask"]}
        inputs["attention_mask"] = torch.ones_like(batch["mask"])
        loss = made._compute_loss(Says(leaf, batch["log_squares"]), inputs, False)
        if ours is None:
            names = dict(zip(settings["loss_types"], settings["loss_weights"], strict=True))
            ours = {"kind": next(iter(names)) if list(names.values()) == [1.0] else names}
        ours = {"beta": settings["beta"], **ours}
        if settings["label_smoothing"]:
            ours["label_smoothing"] = settings["label_smoothing"]
        record(name, source, leaf, loss, batch=on, function="dpo", arguments=ours)

    for kind in DPO_KINDS:
        case(f"dpo/{kind}", loss_types=[kind], label_smoothing=DPO_SMOOTHED.get(kind, 0.0))
    case("dpo/sigmoid beta 0.5", loss_types=["sigmoid"], beta=0.5)
    case("dpo/mpo", loss_types=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    for ours, theirs in DIVERGENCES.items():
        for kind in DIVERGED[ours]:
            arguments = {"kind": kind, "divergence": ours, **({"alpha": 0.5} if ours == "alpha" else {})}
            options = {"loss_types": [kind], "label_smoothing": DPO_SMOOTHED.get(kind, 0.0)}
            if on == "near":
                case(f"dpo/{kind} {ours}", ours=arguments, f_divergence_type=theirs, **options)
    case("dpo/ld", ours={"kind": "sigmoid", "ld_alpha": 0.3}, loss_types=["sigmoid"], ld_alpha=0.3)
    case("dpo/wpo", ours={"kind": "sigmoid", "wpo": True}, loss_types=["sigmoid"], use_weighting=True)
    case("dpo/wpo ipo", ours={"kind": "ipo", "wpo": True}, loss_types=["ipo"], use_weighting=True)
    # What TRL 1.16 has not: conservative DPO and IPO of sums, by OpenRLHF's DPOLoss.
    leaf = batch["log_probs"].clone().requires_grad_()
    c, r = ((leaf - batch["reference"]) * batch["mask"][:, 1:]).sum(1).chunk(2)
    z = 0.1 * (c - r)
    loss = (-0.9 * F.logsigmoid(z) - 0.1 * F.logsigmoid(-z)).mean()
    arguments = {"beta": 0.1, "kind": "sigmoid", "label_smoothing": 0.1}
    facts = {"source": "formula: OpenRLHF DPOLoss", "leaf": leaf, "batch": on, "function": "dpo"}
    record("dpo/cdpo", loss=loss, arguments=arguments, **facts)
    c, r = ((leaf - batch["reference"]) * batch["mask"][:, 1:]).sum(1).chunk(2)
    loss = ((c - r - 1 / (2 * 0.1)) ** 2).mean()
    record("dpo/ipo_sum", loss=loss, arguments={"beta": 0.1, "kind": "ipo_sum"}, **facts)


def unpaired(batch: dict[str, torch.Tensor], on: str) -> None:
    """Every other answer is desirable; mismatched answers are told apart by another first token."""
    desirable = torch.arange(2 * PAIRS) % 2 == 0
    shift = batch["reference"].roll(1, 0)
    for name, kind, sign, weights in [
        ("kto", "kto", 1.0, (1.0, 1.0)),
        ("kto weighted", "kto", 1.0, (1.33, 0.75)),
        ("kto below zero", "kto", -1.0, (1.0, 1.0)),
        ("apo_zero_unpaired", "apo_zero_unpaired", 1.0, (1.0, 1.2)),
    ]:
        leaf = batch["log_probs"].clone().requires_grad_()
        mismatched = shift + sign * (0.1 + batch["log_squares"].abs())

        def model(input_ids: torch.Tensor, **given: Any) -> SimpleNamespace:
            return Says(mismatched if input_ids[0, 0] else leaf)(**given)  # noqa: B023 (called before the next case)

        mask, zeros = batch["mask"], torch.zeros_like(batch["mask"])
        inputs = {"input_ids": zeros, "completion_mask": mask, "attention_mask": zeros, "label": desirable}
        inputs |= {"KL_input_ids": zeros + 1, "KL_completion_mask": mask, "KL_attention_mask": zeros}
        inputs["ref_logps"] = (batch["reference"] * mask[:, 1:]).sum(1)
        inputs["ref_KL_logps"] = (shift * mask[:, 1:]).sum(1)
        options = {"beta": 0.2, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
        settings = {"loss_type": kind, "calculate_KL": kind == "kto", "precompute_ref_logps": True}
        loss = trainer(trl.KTOTrainer, **settings, **options)._compute_loss(model, inputs, False)
        facts = {"batch": on, "function": kind, "arguments": options, "desirable": desirable.tolist()}
        if kind == "kto":
            facts["mismatched"] = (mismatched * mask[:, 1:]).sum(1).tolist()
            facts["mismatched_reference"] = inputs["ref_KL_logps"].tolist()
        record(name, "trl KTOTrainer", leaf, loss, **facts)
    # BCO left TRL in 1.14; its running mean takes this batch in before it is used.
    leaf = batch["log_probs"].clone().requires_grad_()
    before, seen = 0.3, 16.0
    rewards = 0.2 * ((leaf - batch["reference"]) * batch["mask"][:, 1:]).sum(1)
    moved = before + (rewards.detach().mean() - before) * len(rewards) / (seen + len(rewards))
    sign = torch.where(desirable, 1.0, -1.0)
    loss = -F.logsigmoid(sign * (rewards - moved)).mean()
    facts = {"batch": on, "function": "bco", "desirable": desirable.tolist()}
    source = "formula: TRL 1.13 BCOTrainer"
    record("bco", source, leaf, loss, arguments={"beta": 0.2}, running=[before, seen], **facts)
    rewards = 0.2 * ((leaf - batch["reference"]) * batch["mask"][:, 1:]).sum(1)
    loss = -F.logsigmoid(sign * rewards).mean()
    record("bco without a mean", source, leaf, loss, arguments={"beta": 0.2}, **facts)


def reference_free(given: dict[str, torch.Tensor]) -> None:
    """From logits, through the trainers' own forward of chosen and rejected answers in one batch."""
    tokens, labels = given["tokens"], given["labels"]
    batch = {}
    for name, half in {"chosen": slice(None, PAIRS), "rejected": slice(PAIRS, None)}.items():
        batch |= {f"{name}_input_ids": tokens[half], f"{name}_labels": labels[half]}
        batch[f"{name}_attention_mask"] = given["attended"][half]
    settings = {"is_encoder_decoder": False, "pad_token_id": 0, "padding_value": 0, "beta": 0.4}
    settings |= {"label_smoothing": 0.0, "alpha": 0.0, "simpo_gamma": 0.5, "cpo_alpha": 1.0, "loss_type": "sigmoid"}
    for name, kind, function, theirs, ours in [
        ("cpo/sigmoid", CPOTrainer, "cpo", {}, {"kind": "sigmoid"}),
        ("cpo/smoothed", CPOTrainer, "cpo", {"label_smoothing": 0.1, "cpo_alpha": 0.5}, {"nll_weight": 0.5}),
        ("cpo/hinge", CPOTrainer, "cpo", {"loss_type": "hinge"}, {"kind": "hinge"}),
        ("cpo/ipo", CPOTrainer, "cpo", {"loss_type": "ipo"}, {"kind": "ipo"}),
        ("cpo/alpha", CPOTrainer, "cpo", {"alpha": 0.05}, {"alpha": 0.05}),
        ("simpo", CPOTrainer, "simpo", {"loss_type": "simpo", "cpo_alpha": 0.0}, {"gamma": 0.5}),
        ("alphapo", CPOTrainer, "simpo", {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.25}, {"alpha": 0.25}),
        ("orpo", ORPOTrainer, "orpo", {}, {}),
    ]:
        leaf = given["logits"].clone().requires_grad_()
        made = trainer(kind, **{**settings, **theirs})
        loss, _ = made.get_batch_loss_metrics(lambda *_, x=leaf, **__: SimpleNamespace(logits=x), dict(batch))
        arguments = {"beta": 0.4, **ours, **({"gamma": 0.5} if function == "simpo" else {})}
        if "label_smoothing" in theirs:
            arguments["label_smoothing"] = theirs["label_smoothing"]
        record(name, f"trl {kind.__name__}", leaf, loss, batch="answers", function=function, arguments=arguments)


def rewards(given: dict[str, torch.Tensor]) -> None:
    """Losses of scores: one a case, of pairs, or of prompts with four answers each."""
    scores = given["scores"]
    for name, margin, centring in [("plain", None, None), ("margin", given["margin"], None), ("centred", None, 0.01)]:
        leaf = scores.clone().requires_grad_()
        args = SimpleNamespace(center_rewards_coefficient=centring)
        inputs = {"attention_mask": torch.ones(2 * PAIRS, 3), **({} if margin is None else {"margin": margin})}
        made = trainer(trl.RewardTrainer, args=args)
        loss = made.compute_loss(lambda x=leaf, **_: SimpleNamespace(logits=x[:, None]), inputs)
        arguments = {"centring": centring} if centring else {}
        facts = {"batch": "scores", "function": "bradley_terry", "margin": margin is not None}
        record(f"reward/{name}", "trl RewardTrainer", leaf, loss, arguments=arguments, **facts)

    def formula(name: str, source: str, make: Callable[[torch.Tensor], torch.Tensor], on: str, **facts: Any) -> None:
        leaf = given[on].clone().requires_grad_()
        record(f"reward/{name}", source, leaf, make(leaf), batch=on, **facts)

    def agreed(x: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(x[:PAIRS] - x[PAIRS:], given["agreement"])

    source = "torch binary_cross_entropy_with_logits"
    formula("agreement", source, agreed, "scores", function="bradley_terry", arguments={})
    for kind, model in {"rao_kupper": rao_kupper, "davidson": davidson}.items():

        def ties(x: torch.Tensor, model: Any = model) -> torch.Tensor:
            first, tie = model(x[:PAIRS].exp(), x[PAIRS:].exp(), 0.2)
            return -torch.where(given["tied"], tie, first).log().mean()

        facts = {"function": "bradley_terry_ties", "arguments": {"kind": kind, "tie_rate": 0.2}}
        formula(f"ties {kind}", f"formula: {kind} as printed, from worths", ties, "scores", **facts)
    source = "formula: InstructGPT (1), pair by pair"
    formula("rankings", source, lambda x: ranked(x, given), "ranked", function="rankings")
    targets = given["agreement"].repeat(2)
    errors = {"squared": lambda x: F.mse_loss(x, targets), "huber": lambda x: F.huber_loss(x, targets, delta=0.7)}
    for kind, make in errors.items():
        facts = {"function": "pointwise", "arguments": {"kind": kind, "delta": 0.7}, "targets": targets.tolist()}
        formula(kind, "torch mse_loss, huber_loss", make, "scores", **facts)
    good = given["tied"].long()
    two = lambda x: F.cross_entropy(x.reshape(PAIRS, 2), good)  # noqa: E731
    formula("two_class", "torch cross_entropy", two, "scores", function="two_class", good=given["tied"].tolist())


def rao_kupper(first: torch.Tensor, second: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    theta = (1 + rate) / (1 - rate)  # then (theta - 1) / (theta + 1) = rate is a tie's probability between equals
    won, lost = first / (first + theta * second), second / (second + theta * first)
    return won, 1 - won - lost


def davidson(first: torch.Tensor, second: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = 2 * rate / (1 - rate) * (first * second).sqrt()  # of equals: v / (2 + v) = rate
    return first / (first + second + drawn), drawn / (first + second + drawn)


def ranked(scores: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    prompts = []
    for row, ranks, there in zip(scores, given["ranks"], given["there"], strict=True):
        places = [i for i in range(len(row)) if there[i]]
        pairs = [(i, j) for i in places for j in places if ranks[i] < ranks[j]]
        prompts.append(sum(-F.logsigmoid(row[i] - row[j]) for i, j in pairs) / len(pairs))
    return torch.stack(prompts)


def distilled(given: dict[str, torch.Tensor]) -> None:
    student, teacher = given["logits"][:3, :4], given["teacher"][:3, :4]
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        kind = {0.0: "forward", 1.0: "reverse"}.get(beta, "jensen_shannon")
        for temperature in {0.1: (1.0,), 0.9: (1.0,)}.get(beta, (2.5,)):
            leaf = student.clone().requires_grad_()
            terms = GKDTrainer.generalized_jsd_loss(leaf, teacher, None, beta, temperature, "none")
            arguments = {"kind": kind, "beta": beta or 0.5, "temperature": temperature}
            facts = {"batch": "places", "function": "distillation", "arguments": arguments}
            record(f"distil/{kind} {beta} at {temperature}", "trl GKDTrainer", leaf, terms.sum(-1), **facts)
            if beta in (0.0, 0.5, 1.0) and temperature > 1:
                leaf = student.clone().requires_grad_()
                head, ones = torch.eye(WORDS), torch.ones(leaf.shape[:2])
                # Both heads are the identity, so hidden states are logits.
                loss, *_ = _chunked_divergence_loss(leaf, teacher, head, head, ones, beta, temperature=temperature)
                record(f"distil/{kind} chunked", "trl DistillationTrainer", leaf, loss, **facts)
    leaf, targets = student.clone().requires_grad_(), given["tokens"][:3, :4]
    cooled = (leaf / 2).log_softmax(-1), (teacher / 2).log_softmax(-1)
    soft = F.kl_div(*cooled, reduction="none", log_target=True).sum(-1)
    hard = F.cross_entropy(leaf.flatten(0, 1), targets.flatten(), reduction="none").reshape(targets.shape)
    arguments = {"temperature": 2.0, "times_temperature_squared": True, "hard": 0.25}
    facts = {"batch": "places", "function": "distillation", "arguments": arguments}
    record("distil/hinton", "torch kl_div, cross_entropy", leaf, 0.75 * 4 * soft + 0.25 * hard, **facts)


def tokens(given: dict[str, torch.Tensor]) -> None:
    leaf = given["logits"].clone().requires_grad_()
    picked = selective_log_softmax(leaf[:, :-1], given["tokens"][:, 1:])
    made = trainer(trl.SFTTrainer, compute_loss_func=None, label_smoother=None)
    made.args = SimpleNamespace(loss_type="dft", average_tokens_across_devices=False)
    inputs = {"input_ids": given["tokens"], "labels": given["labels"], "attention_mask": given["attended"]}
    loss = made.compute_loss(Says(picked), inputs)
    record("token/dft", "trl SFTTrainer", leaf, loss, batch="answers", function="dft")
    leaf = given["logits"].clone().requires_grad_()
    facts = {"batch": "answers", "function": "entropy"}
    record("token/entropy", "trl entropy_from_logits", leaf, entropy_from_logits(leaf), **facts)
    flat, wanted = given["logits"].flatten(0, 1), given["tokens"].flatten()
    outputs = ("log_sum_sq_probs",)
    squares = ChunkedLogProbFunction.apply(flat, torch.eye(WORDS), None, wanted, 1.0, 4, None, 1.0, outputs)[2]
    leaf = given["logits"].clone().requires_grad_()
    mine = (leaf.log_softmax(-1) * 2).logsumexp(-1)
    assert torch.allclose(squares.reshape(mine.shape), mine.detach(), atol=1e-6)
    source = "trl ChunkedLogProbFunction; gradient: torch logsumexp"
    record("token/log_sum_squares", source, leaf, mine, batch="answers", function="log_sum_squares")


def main() -> None:
    torch.set_num_threads(1)
    given = batches()
    for on, batch in given.items():
        dpo(batch, on)
        unpaired(batch, on)
    torch.manual_seed(8)
    mask = given["near"]["mask"]
    answers = {"logits": 2 * torch.randn(*mask.shape, WORDS), "teacher": 2 * torch.randn(*mask.shape, WORDS)}
    answers |= {"tokens": torch.randint(WORDS, mask.shape), "attended": (mask.flip(1).cumsum(1) > 0).long().flip(1)}
    answers["labels"] = answers["tokens"].masked_fill(mask == 0, -100)
    reference_free(answers)
    tokens(answers)
    distilled(answers)
    ranks = torch.tensor([[2, 1, 4, 3], [1, 1, 2, 3], [3, 1, 2, 9]])
    there = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    scored = {"scores": 1.5 * torch.randn(2 * PAIRS), "margin": torch.rand(PAIRS), "agreement": torch.rand(PAIRS)}
    scored |= {"tied": torch.tensor([False, True, False, False, True]), "ranked": torch.randn(3, 4)}
    scored |= {"ranks": ranks, "there": there}
    rewards(scored)
    batched = {**given, "answers": answers, "scores": scored}
    inputs = {name: {key: x.tolist() for key, x in batch.items()} for name, batch in batched.items()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    whole = json.dumps(shortened({"made_by": MADE_BY, "inputs": inputs}))[:-1]
    lines = ",\n".join(json.dumps(shortened(case)) for case in cases)
    OUT.write_text(f'{whole},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


def shortened(x: Any) -> Any:
    """Floats as float32 needs them, nine digits."""
    if isinstance(x, dict):
        return {key: shortened(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [shortened(value) for value in x]
    return float(f"{x:.9g}") if isinstance(x, float) else x


if __name__ == "__main__":
    main()
