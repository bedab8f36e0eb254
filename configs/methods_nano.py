# SPDX-License-Identifier: Apache-2.0
"""Every method of tuning on the quickstart's tasks, one function each, at the learning rates of the README's table.

jaxpost train configs/methods_nano.py:prefix
jaxpost train configs/methods_nano.py:dora --delta.rank 8
jaxpost train configs/methods_nano.py:qlora --optim.paged True
"""

from dataclasses import replace

from jaxpost import delta
from jaxpost.recipes import sft
from jaxpost.recipes.assembly import DeltaConfig


def _config(name: str, method: DeltaConfig, lr: float) -> sft.Config:
    return sft.Config(
        run=f"runs/methods_nano_{name}",
        model=sft.Pretrained("nano", dtype="float32"),
        delta=method,
        data=sft.Tasks(
            held_out_tasks=("smaller_thing", "list_has", "similar", "job_of", "mood", "kind_follows"),
            held_out_clusters=("comparison", "reading"),
        ),
        batches=sft.Batches(rows=32, seq_len=256),
        optim=sft.Optimiser(lr=lr, warmup=10),
        train=sft.Training(steps=300, eval_every=100, eval_batches=4),
    )


def base() -> sft.Config:
    """LoRA, with another rank for the last layer's matrices."""
    return _config("lora", delta.Lora(rank=16, alpha=16.0, ranks={"layers/4/*": 8}), 5e-3)


def qlora() -> sft.Config:
    """LoRA over a base in NF4, embedding and head in eight bits."""
    config = _config("qlora", delta.Lora(rank=16, alpha=16.0), 5e-3)
    return replace(config, model=sft.Pretrained("nano", dtype="float32", quant="nf4", ends="int8"))


def pissa() -> sft.Config:
    return _config("pissa", delta.Lora(rank=16, alpha=16.0, init="pissa"), 1e-3)


def dora() -> sft.Config:
    return _config("dora", delta.Dora(rank=16, alpha=16.0), 5e-3)


def adalora() -> sft.Config:
    return _config("adalora", delta.AdaLora(24, 16, alpha=16.0, warmup=30, settle=100, every=10), 1e-2)


def vera() -> sft.Config:
    return _config("vera", delta.Vera(rank=256), 5e-2)


def ia3() -> sft.Config:
    return _config("ia3", delta.Ia3(), 1e-1)


def bitfit() -> sft.Config:
    return _config("bitfit", delta.BitFit(add=True), 5e-2)


def houlsby() -> sft.Config:
    return _config("houlsby", delta.Adapters("houlsby", reduction=8), 1.5e-2)


def pfeiffer() -> sft.Config:
    return _config("pfeiffer", delta.Adapters("pfeiffer", reduction=8), 2e-2)


def lite() -> sft.Config:
    """A thin branch beside each MLP and all biases: what TinyTL (https://arxiv.org/abs/2007.11622) is for a block of
    attention and MLP. (Its pooling over places would let a token see later ones.)"""
    branch = delta.Adapters("parallel", reduction=16)
    return _config("lite", delta.Both(branch, delta.BitFit(add=True)), 2e-2)


def prompt() -> sft.Config:
    return _config("prompt", delta.Prompt(20), 2e-1)


def infix() -> sft.Config:
    return _config("infix", delta.Prompt(20, place="between"), 2e-1)


def ptuning() -> sft.Config:
    return _config("ptuning", delta.Ptuning(20), 1e-2)


def prefix() -> sft.Config:
    """Deep prompts, as P-tuning v2 has them: keys and values of every layer."""
    return _config("prefix", delta.Prefix(20), 2e-1)


def written_prefix() -> sft.Config:
    """A prefix that a network writes while it is trained, and that is kept alone when it is exported."""
    return _config("written_prefix", delta.Prefix(20, hidden=256), 5e-3)


def last_layers() -> sft.Config:
    """Full tuning of the last two layers alone."""
    return _config("last_layers", delta.Select(delta.Full(), ("layers/*",), layers=(3, 4)), 1e-3)


def tiny() -> sft.Config:
    """Four steps of what has most to remember, for tests: ranks that are given out anew, a network that writes a
    prefix, moments in host memory, a base in four bits."""
    both = delta.Both(delta.Prefix(2, hidden=4), delta.AdaLora(3, 2, targets=("q", "down"), warmup=1, settle=1))
    config = _config("tiny", both, 1e-2)
    return replace(
        config,
        model=sft.Pretrained("nano", dtype="float32", quant="nf4", ends="int8"),
        data=sft.Tasks(only=("arithmetic", "sentiment"), held_out_tasks=("mood",), held_out_clusters=("tracking",)),
        batches=sft.Batches(rows=8, seq_len=64),
        optim=replace(config.optim, warmup=1, paged=True),
        train=replace(config.train, steps=4, eval_every=2, eval_batches=1, save_every=1),
        review=sft.Review(examples=2, generations=1, rows=8),
    )
