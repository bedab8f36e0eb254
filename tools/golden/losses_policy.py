# SPDX-License-Identifier: Apache-2.0
"""Golden numbers of policy losses, returns, advantages, KL and values, made by verl's and TRL's own functions.

TRL's losses are methods of trainers: they are called with a stand-in that hands them log-probabilities and rewards
instead of a model. Everything is computed in float64 on inputs that float32 holds exactly.

Run from the checkout, in an environment with torch, trl 1.16.0 and verl 0.9.1 (without its dependencies, plus ray,
tensordict, omegaconf, hydra-core and orjson); it rewrites tests/golden/losses/policy.json:

    python tools/golden/losses_policy.py
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import trl
import verl
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig

ROOT = Path(__file__).parent.parent.parent
SEED = 11
LENGTHS = (7, 4, 1, 6, 5, 7, 3, 6)  # of answers, right-padded to 7
GROUPS = (0, 0, 0, 0, 1, 1, 1, 1)
GAE = (("mask", 0.9, 0.8), ("holes", 1.0, 0.95), ("holes", 0.97, 1.0), ("holes", 0.97, 0.0))
BUDGET = 9  # the longest answer allowed: no answer here is as long


def exact(x: Any) -> np.ndarray:
    """The nearest number that float32 holds."""
    return np.asarray(x, np.float32).astype(np.float64)


def draw() -> dict[str, np.ndarray]:
    """Answers of a policy that has moved so far that every clip and cap is met."""
    rng = np.random.default_rng(SEED)
    shape = (len(LENGTHS), max(LENGTHS))
    mask = exact(np.arange(shape[1]) < np.array(LENGTHS)[:, None])
    holes = mask.copy()
    holes[0, 2:4] = holes[5, 3] = 0  # what an environment said between two turns
    old = exact(-rng.gamma(1.5, 0.8, shape))
    log_probs = exact(np.minimum(old + 0.5 * rng.normal(size=shape), -1e-3))
    log_probs[1, 1] = exact(old[1, 1] - 3.5)
    log_probs[3, 2] = exact(old[3, 2] + 1.9)
    log_probs[4, 0] = exact(old[4, 0] + 1.6)
    rewards = exact(rng.normal(size=shape[0]) + 0.5)
    several = exact(rng.normal(size=(shape[0], 2)) * np.array([1.0, 5.0]))
    several[1, 0] = several[6, 0] = several[6, 1] = np.nan
    return {
        "log_probs": log_probs,
        "old_log_probs": old,
        "reference_log_probs": exact(old + 0.4 * rng.normal(size=shape)),
        "sampler_log_probs": exact(old + 0.3 * rng.normal(size=shape)),
        "entropies": exact(rng.gamma(2.0, 0.5, shape)),
        "mask": mask,
        "holes": holes,
        "advantages": exact(np.array([1.2, -0.7, 0.4, -1.5, 0.9, -0.3, 0.0, -2.0])),
        "token_advantages": exact(rng.normal(size=shape)),
        "rewards": rewards,
        "missing": np.where(np.arange(shape[0]) == 2, np.nan, rewards),
        "alone": np.where(np.isin(np.arange(shape[0]), (4, 5, 7)), np.nan, rewards),
        "several": several,
        "token_rewards": exact(rng.normal(size=shape)),
        "values": exact(rng.normal(size=shape)),
        "old_values": exact(rng.normal(size=shape)),
        "returns": exact(rng.normal(size=shape)),
        "logits": exact(2 * rng.normal(size=(*shape, 5))),
    }


def by_trl(inputs: dict[str, np.ndarray]) -> Callable[..., tuple]:
    """TRL's loss of one batch, as its trainer computes it in evaluation (one batch, not accumulated)."""
    tensors = {name: torch.tensor(x) for name, x in inputs.items()}
    same = SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        pad_across_processes=lambda x, dim, pad_index: x,
        num_processes=1,
        process_index=0,
        device=torch.device("cpu"),
        sync_gradients=True,
    )

    def run(loss_type: str, level: str = "token", advantages: str = "advantages", **options: Any) -> tuple:
        log_probs = tensors["log_probs"].clone().requires_grad_()
        entropies = tensors["entropies"].clone().requires_grad_()
        settings = {"delta": None, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
        settings |= {"vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0}
        settings |= {"use_bias_correction_kl": True} | options
        trainer = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *a, **k: (log_probs, entropies, None),
            get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
            get_gamma_weights=GRPOTrainer.get_gamma_weights,
            accelerator=same,
            model=SimpleNamespace(training=False),
            args=SimpleNamespace(**settings, steps_per_generation=1),
            current_gradient_accumulation_steps=1,
            aux_loss_enabled=False,
            top_entropy_quantile=options.get("top_entropy_quantile", 1.0),
            off_policy_mask_threshold=options.get("off_policy_mask_threshold"),
            importance_sampling_level=level,
            beta=options.get("beta", 0.0),
            loss_type=loss_type,
            epsilon_low=0.2,
            epsilon_high=options.get("epsilon_high", 0.28),
            use_vllm="weights" in options,
            vllm_importance_sampling_correction=True,
            max_completion_length=BUDGET,
            _entropy_bonus_enabled="entropy_coef" in options,
            use_adaptive_entropy=False,
            entropy_coef=options.get("entropy_coef", 0.0),
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        trainer.get_high_entropy_mask = lambda *a: GRPOTrainer.get_high_entropy_mask(trainer, *a)
        batch = {
            "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
            "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
            "completion_ids": torch.zeros(log_probs.shape, dtype=torch.long),
            "completion_mask": tensors["mask"],
            "advantages": tensors[advantages],
            "old_per_token_logps": tensors["old_log_probs"],
            "ref_per_token_logps": tensors["reference_log_probs"],
            "sampling_per_token_logps": tensors["sampler_log_probs"],
            "num_items_in_batch": tensors["mask"].sum(),
        }
        if "weights" in options:
            batch["importance_sampling_ratio"] = torch.tensor(options["weights"])
        loss = inspectable(GRPOTrainer._compute_loss)(trainer, None, batch)
        metrics = trainer._metrics["eval"].get("clip_ratio/region_mean")
        return loss, log_probs, metrics and metrics[0]

    return run


def inspectable(method: Callable) -> Callable:
    """The method itself, without the decorator that asks the trainer for its profiler."""
    return getattr(method, "__wrapped__", method)


def scored_by_trl(
    trainer_class: type, inputs: dict[str, np.ndarray], rewards: np.ndarray, **options: Any
) -> dict[str, Any]:
    """What TRL's trainer adds to a batch of answers: advantages, and weights for another sampler."""
    log_probs, sampler = torch.tensor(inputs["old_log_probs"]), inputs["sampler_log_probs"]
    trainer = MagicMock()
    names = [f"r{k}" for k in range(rewards.shape[1])]
    plain = {
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "pad_to_multiple_of": None,
        "mask_truncated_completions": False,
        "num_generations": 4,
        "beta": 0.0,
        "ref_model": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_clip_min": None,
        "reward_clip_range": None,
        "normalize_advantages": False,
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_funcs": names,
        "reward_func_names": names,
        "reward_weights": torch.ones(len(names), dtype=torch.float64),
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_logs": defaultdict(lambda: defaultdict(list)) | {"prompt": [], "completion": [], "advantages": []},
        "_pending_extra_logs": defaultdict(list),
        "_pending_metrics": defaultdict(list),
    }
    for name, value in (plain | options).items():
        setattr(trainer, name, value)
    trainer.model.training = True
    trainer.accelerator.device = torch.device("cpu")
    trainer.accelerator.process_index = 0
    trainer.accelerator.gather = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.args.steps_per_generation = trainer.num_iterations = trainer.args.gradient_accumulation_steps = 1
    trainer._tokenizer.pad_token_id = 0
    prompts, answers = [[1]] * len(LENGTHS), [[1] * length for length in LENGTHS]
    sampled = [row[:length].tolist() for row, length in zip(sampler, LENGTHS, strict=True)]
    if trainer_class is GRPOTrainer:
        trainer._generate.return_value = (prompts, answers, None, answers, sampled, {}, None, None)
    else:
        trainer._generate.return_value = (prompts, answers, answers)
    trainer._get_per_token_logps_and_entropies = lambda model, *a, **k: (
        (torch.tensor(inputs["reference_log_probs"]) if model is trainer.ref_model else log_probs),
        None,
        None,
    )
    trainer._calculate_rewards.return_value = torch.tensor(rewards)
    return inspectable(trainer_class._generate_and_score_completions)(trainer, [{"prompt": "p"} for _ in LENGTHS])


def rloo_by_trl(inputs: dict[str, np.ndarray]) -> tuple:
    log_probs = torch.tensor(inputs["log_probs"]).requires_grad_()
    mask, old = torch.tensor(inputs["mask"]), torch.tensor(inputs["old_log_probs"])
    trainer = MagicMock(epsilon_low=0.2, epsilon_high=0.28, aux_loss_enabled=False)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (log_probs, torch.zeros_like(mask), None)
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer.accelerator.gather = lambda x: x
    trainer.accelerator.reduce = lambda x, reduction: x
    ids = torch.zeros(mask.shape, dtype=torch.long)
    batch = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": mask}
    batch |= {"old_logps": (old * mask).sum(1), "advantages": torch.tensor(inputs["advantages"])}
    return inspectable(RLOOTrainer._compute_loss)(trainer, None, batch), log_probs


def by_verl(inputs: dict[str, np.ndarray]) -> Callable[..., tuple]:
    tensors = {name: torch.tensor(x) for name, x in inputs.items()}
    spread = tensors["advantages"][:, None].expand(tensors["mask"].shape).contiguous()

    def run(
        loss: str, mode: str, advantages: str = "advantages", options: dict | None = None, batch: dict | None = None
    ) -> tuple:
        log_probs = tensors["log_probs"].clone().requires_grad_()
        config = ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, **(options or {}))
        object.__setattr__(config, "global_batch_info", batch or {})
        of_tokens = spread if advantages == "advantages" else tensors[advantages]
        function = core_algos.get_policy_loss_fn(loss)
        value, metrics = function(tensors["old_log_probs"], log_probs, of_tokens, tensors["mask"], mode, config=config)
        return value, log_probs, metrics.get("actor/pg_clipfrac")

    return run


class Cases(list):
    """What is compared: a name that says which function and options, and numbers."""

    def loss(self, name: str, result: tuple, **more: Any) -> None:
        value, leaf, *fraction = result
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        self.numbers(name, value=value, gradient=gradient, **more)
        if fraction and fraction[0] is not None:
            self[-1]["clip_fraction"] = fraction[0]

    def numbers(self, name: str, **numbers: torch.Tensor) -> None:
        self.append({"name": name} | {key: listed(x.detach()) for key, x in numbers.items()})


def listed(x: Any) -> Any:
    """Nine digits hold a float32 exactly; what is NaN is null."""
    if isinstance(x, torch.Tensor | np.ndarray):
        return listed(np.asarray(x, np.float64).tolist())
    if isinstance(x, list):
        return [listed(y) for y in x]
    return None if math.isnan(x) else float(f"{x:.9g}")


def losses(cases: Cases, inputs: dict[str, np.ndarray]) -> None:
    trl_loss, verl_loss = by_trl(inputs), by_verl(inputs)
    for kind in ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "sapo", "vespo"):
        cases.loss(f"trl/{kind}", trl_loss(kind))
    cases.loss("trl/cispo", trl_loss("cispo", epsilon_high=5.0))
    cases.loss("trl/cispo-low_cap", trl_loss("cispo", epsilon_high=1.5))
    cases.loss("trl/gspo", trl_loss("grpo", "sequence"))
    cases.loss("trl/luspo-sequence", trl_loss("luspo", "sequence"))
    cases.loss("trl/sapo-sequence", trl_loss("sapo", "sequence"))
    cases.loss("trl/cispo-sequence", trl_loss("cispo", "sequence", epsilon_high=1.2))
    cases.loss("trl/gspo-tokens", trl_loss("grpo", "sequence", "token_advantages"))
    cases.loss("trl/dapo-tokens", trl_loss("dapo", "token", "token_advantages"))
    cases.loss("trl/dapo-delta", trl_loss("dapo", delta=1.5))
    cases.loss("trl/dapo-off_policy", trl_loss("dapo", off_policy_mask_threshold=0.05))
    cases.loss("trl/dapo-top_entropy", trl_loss("dapo", top_entropy_quantile=0.3))
    cases.loss("trl/dapo-entropy", trl_loss("dapo", entropy_coef=0.1))
    cases.loss("trl/dapo-kl", trl_loss("dapo", beta=0.3, use_bias_correction_kl=False))
    cases.loss("trl/dapo-kl_corrected", trl_loss("dapo", beta=0.3))
    cases.loss("trl/gspo-kl_corrected", trl_loss("grpo", "sequence", beta=0.3))
    cases.loss("trl/rloo", rloo_by_trl(inputs))

    narrow = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
    batch = {"dp_size": 1, "batch_num_tokens": 50, "global_batch_size": 11, "loss_scale_factor": BUDGET}
    modes = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
    for mode in modes:
        cases.loss(f"verl/vanilla-{mode}", verl_loss("vanilla", mode, "token_advantages", narrow))
        cases.loss(f"verl/vanilla-{mode}-part", verl_loss("vanilla", mode, "token_advantages", narrow, batch))
    dual = narrow | {"clip_ratio_c": 1.5}
    cases.loss("verl/vanilla-dual", verl_loss("vanilla", "token-mean", options=dual))
    cases.loss("verl/gspo", verl_loss("gspo", "seq-mean-token-mean", options=narrow))
    cases.loss("verl/gspo-tokens", verl_loss("gspo", "token-mean", "token_advantages", narrow))
    cases.loss("verl/sapo", verl_loss("sapo", "seq-mean-token-mean", options={"tau_pos": 1.0, "tau_neg": 1.3}))
    cases.loss("verl/cispo", verl_loss("cispo", "token-mean", options=narrow))
    cases.loss("verl/gpg", verl_loss("gpg", "token-mean", "token_advantages"))


def weights(cases: Cases, inputs: dict[str, np.ndarray]) -> None:
    """Of another sampler, and what becomes of a loss with them."""
    rewards = inputs["rewards"][:, None]
    for level in ("token", "sequence"):
        for beyond in ("truncate", "mask"):
            options = {"vllm_importance_sampling_mode": f"{level}_{beyond}", "vllm_importance_sampling_clip_max": 1.3}
            scored = scored_by_trl(GRPOTrainer, inputs, rewards, use_vllm=True, **options)
            ratio = scored["importance_sampling_ratio"]
            cases.loss(f"trl/dapo-{level}_{beyond}", by_trl(inputs)("dapo", weights=ratio.numpy()), weights=ratio)
            if beyond == "truncate":
                cases.loss(f"trl/vespo-{level}_{beyond}", by_trl(inputs)("vespo", weights=ratio.numpy()), weights=ratio)


def returns(cases: Cases, inputs: dict[str, np.ndarray]) -> None:
    t = {name: torch.tensor(x) for name, x in inputs.items()}
    for mask, gamma, lam in GAE:
        result = core_algos.compute_gae_advantage_return(t["token_rewards"], t["values"], t[mask], gamma, lam)
        cases.numbers(f"verl/gae-{mask}-{gamma}-{lam}", advantages=result[0] * t[mask], returns=result[1] * t[mask])
    config = SimpleNamespace(gamma=0.9)
    result = core_algos.compute_reinforce_plus_plus_outcome_advantage(t["token_rewards"], t["holes"], config=config)
    cases.numbers("verl/reinforce_plus_plus", advantages=result[0], returns=result[1])
    scores = torch.zeros_like(t["mask"])
    scores[torch.arange(len(LENGTHS)), torch.tensor(LENGTHS) - 1] = t["rewards"]
    rewards = core_algos.compute_rewards(scores, t["old_log_probs"], t["reference_log_probs"], 0.1)
    cases.numbers("verl/token_rewards", value=rewards * t["mask"])
    for shift in (True, False):
        value = core_algos.verl_F.masked_whiten(t["values"], t["mask"], shift_mean=shift)
        cases.numbers(f"verl/whiten-{shift}", value=value * t["mask"])


def advantages(cases: Cases, inputs: dict[str, np.ndarray]) -> None:
    mask, index = torch.tensor(inputs["mask"]), np.array(GROUPS)
    only = {"token_level_rewards": mask * 0, "response_mask": mask}
    only["token_level_rewards"][:, 0] = torch.tensor(inputs["rewards"])
    uneven = np.array([0, 0, 0, 1, 1, 1, 1, 2])

    def verl_says(name: str, function: Callable, **more: Any) -> None:
        result = function(**{key: x.clone() for key, x in only.items()}, **more)[0]
        cases.numbers(f"verl/{name}", value=result)

    for name, groups in (("even", index), ("uneven", uneven)):
        verl_says(f"grpo-{name}", core_algos.compute_grpo_outcome_advantage, index=groups)
        unscaled = {"norm_adv_by_std_in_grpo": False}
        verl_says(f"grpo_unscaled-{name}", core_algos.compute_grpo_outcome_advantage, index=groups, **unscaled)
        verl_says(f"rloo-{name}", core_algos.compute_rloo_outcome_advantage, index=groups)
        baseline = core_algos.compute_reinforce_plus_plus_baseline_outcome_advantage
        verl_says(f"reinforce_plus_plus_baseline-{name}", baseline, index=groups)
    verl_says("opo-even", core_algos.compute_opo_outcome_advantage, index=index)
    for which in ("rewards", "missing", "alone"):
        rewards = inputs[which][:, None]
        for scale in ("group", "batch", "none"):
            scored = scored_by_trl(GRPOTrainer, inputs, rewards, scale_rewards=scale)
            cases.numbers(f"trl/grpo-{which}-{scale}", value=scored["advantages"])
        cases.numbers(f"trl/rloo-{which}", value=scored_by_trl(RLOOTrainer, inputs, rewards)["advantages"])
    weighted = {"reward_weights": torch.tensor([1.0, 0.5], dtype=torch.float64)}
    for way in ("sum_then_normalize", "normalize_then_sum"):
        scored = scored_by_trl(GRPOTrainer, inputs, inputs["several"], multi_objective_aggregation=way, **weighted)
        cases.numbers(f"trl/{way}", value=scored["advantages"])
    reference = {"beta": 0.05, "ref_model": "reference"}
    scored = scored_by_trl(RLOOTrainer, inputs, inputs["rewards"][:, None], **reference)
    cases.numbers("trl/rloo-kl", value=scored["advantages"])


def kl_and_value(cases: Cases, inputs: dict[str, np.ndarray]) -> None:
    t = {name: torch.tensor(x) for name, x in inputs.items()}
    far = 8 * t["logits"][..., 0]  # up to where verl clamps
    for kind in ("k1", "k2", "k3", "abs", "k1+", "k3+", "abs+"):
        log_probs = far.clone().requires_grad_()
        cases.loss(f"verl/{kind}", (core_algos.kl_penalty(log_probs, t["reference_log_probs"], kind), log_probs))
    p, q = t["logits"].clone().requires_grad_(), t["logits"].flip(-1).clone().requires_grad_()
    value = torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    gradients = torch.autograd.grad(value.sum(), (p, q))
    cases.numbers("torch/full_kl", value=value, gradient=gradients[0], other_gradient=gradients[1])
    controller = core_algos.AdaptiveKLController(0.2, 6.0, 10_000)
    seen = []
    for kl in (1.0, 5.5, 6.5, 30.0, -2.0):
        controller.update(kl, 256)
        seen.append(controller.value)
    cases.numbers("verl/adaptive", value=torch.tensor(seen, dtype=torch.float64))
    for mode in ("token-mean", "seq-mean-token-mean"):
        values = t["values"].clone().requires_grad_()
        loss, fraction = core_algos.compute_value_loss(values, t["returns"], t["old_values"], t["mask"], 0.2, mode)
        cases.loss(f"verl/value-{mode}", (loss, values, float(fraction)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "golden" / "losses" / "policy.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    inputs, cases = draw(), Cases()
    for add in (losses, weights, returns, advantages, kl_and_value):
        add(cases, inputs)
    made_by = f"torch {torch.__version__}, trl {trl.__version__}, verl {verl.__version__}, seed {SEED}"
    numbers = {name: listed(x) for name, x in inputs.items()} | {"groups": list(GROUPS), "budget": BUDGET}
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    out.write_text(f'{{"made_by": "{made_by}",\n"inputs": {json.dumps(numbers)},\n"cases": [\n{lines}\n]}}\n')
    print(f"{len(cases)} cases in {out}")


if __name__ == "__main__":
    main()
