# SPDX-License-Identifier: Apache-2.0
"""The verb that makes one of several: deltas of one base, and a delta and its base."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxpost.cli.results import _check_foldable, _check_out, _write_adapter, _write_model
from jaxpost.cli.terminal import escaped, say, status
from jaxpost.faults import Fault

Positional = tyro.conf.Positional


def merge(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...] OUT")],
    how: Literal["cat", "svd", "ties", "dare", "dare_ties", "magnitude"] = "cat",
    weights: tuple[float, ...] = (),
    rank: int = 0,
    density: float = 0.5,
    majority: Literal["total", "frequency"] = "total",
    seed: int = 0,
    to: Literal["hf", "peft"] = "hf",
    dtype: str = "",
    best: bool = False,
    requantise: Annotated[bool, tyro.conf.arg(help="Into the format of a base that is quantised.")] = True,
    overwrite: Annotated[bool, tyro.conf.arg(help="Replace the model or adapter that OUT holds.")] = False,
) -> None:
    """Write what one or several runs over one base made of it, merged into OUT: a model directory, or (--to peft) an
    adapter. Several deltas are summed, each times its weight (--how cat), brought to a --rank (svd), or merged of the
    share --density of their numbers: the largest (magnitude, ties) or any (dare, dare_ties)."""
    from jaxpost.delta.merges import Merge
    from jaxpost.models import decoder
    from jaxpost.recipes import base, trained

    *names, last = runs or ("",)
    if not names:
        raise Fault("name one or more runs, and behind them the directory to write: jaxpost merge RUN [RUN ...] OUT")
    out, dtype = Path(last), base.dtype_named(dtype, "--dtype")
    _check_flags(how, rank, to, dtype)
    for name in names:
        _check_out(out, name, overwrite)
    _check_base(names)
    with status(f"reading {names[0]}"):
        model = trained.read(names[0], best)
    deltas = [model.delta]
    for name in names[1:]:
        with status(f"reading {name}"):
            deltas.append(trained.read(name, best).delta)
    if len(names) > 1 or how != "cat" or weights:
        with status("merging"):
            merged = Merge(how, weights, rank, density, majority, seed)(deltas, decoder.specs(model.model))
        model = replace(model, delta=merged)
    told = ""
    if to == "hf":
        _check_foldable(names[0], model)
    if to == "hf" and requantise:
        with status("merging into the base"):
            model, told = requantised(model)
        if told:
            say(escaped(told))
    with status(f"writing {out}"):
        said = _write_model(out, names[0], model, dtype) if to == "hf" else _write_adapter(out, names[0], model, to)
    if told:  # for what was rounded is told by then, and a model directory knows no formats
        said = f"{out} holds those values, and all others, in {dtype or model.model.dtype}"
    say(escaped(said))


def _check_flags(how: str, rank: int, to: str, dtype: str) -> None:
    """That all that is asked for is done: nothing is said and then ignored."""
    if how == "cat" and rank:
        raise Fault(f"--rank {rank}: cat keeps all of what was learned; say --how svd to bring it to a rank")
    if to != "hf" and dtype:
        raise Fault(f"--dtype {dtype} is of a model directory; an adapter is written in float32, leave it out")
    if to != "hf" and how not in ("cat", "svd") and not rank:
        raise Fault(f"--how {how} makes whole matrices, and an adapter holds factors; give a --rank, or say --to hf")


def _check_base(names: list[str]) -> None:
    """That all are runs over the same model; its type in memory and its chat template are no part of what it is."""
    from jaxpost.data.tokenizers import Chat
    from jaxpost.recipes import base, record, trained

    starts = {}
    for name in names:
        if not record.is_run(Path(name)):
            raise Fault(f"{name} is no run directory, and what is merged is what runs made of their base")
        start = trained.base_of(name)
        starts[name] = replace(start, chat=Chat(), **({"dtype": ""} if isinstance(start, base.Pretrained) else {}))
    if odd := [name for name in names if starts[name] != starts[names[0]]]:
        raise Fault(f"{odd[0]} starts from another model than {names[0]}; deltas add up over the same one alone")


def requantised(model: Any) -> tuple[Any, str]:
    """The model with its delta folded in, those of its weights that were quantised in their own format again, and what
    that cost, in words; as it is, and no words, where no edited weight is quantised."""
    from jaxpost.delta.refold import refold

    plain, delta = model.apart
    weights, drifts = refold(plain, delta)
    if not drifts:
        return model, ""
    lost, change = ({path: getattr(d, name) for path, d in drifts.items()} for name in ("of_weight", "of_change"))
    worst = max(lost, key=lambda path: lost[path].max())
    layer = int(lost[worst].argmax())
    told = (
        f"{sum(map(len, lost.values()))} matrices were merged and quantised again as the base is. They are off by "
        f"{_mean(lost):.2%} on the mean, {lost[worst].max():.2%} at worst ({worst}, matrix {layer} of "
        f"{len(lost[worst])}); that is {_mean(change):.0%} of what was learned. --no-requantise keeps it all"
    )
    return replace(model, base=weights, delta={}, adapter={}), told


def _mean(shares: dict[str, Any]) -> float:
    return sum(map(sum, shares.values())) / sum(map(len, shares.values()))
