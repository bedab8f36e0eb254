# SPDX-License-Identifier: Apache-2.0
"""A run that has trained, read back to be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpost import delta
from jaxpost.arrays import Tree
from jaxpost.data.sources import remote
from jaxpost.data.tokenizers import Tokenizer, Virtual, with_virtual
from jaxpost.delta.algebra import stack
from jaxpost.faults import Fault
from jaxpost.interop import hub
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import adapter, base, record
from jaxpost.recipes.assembly import assemble, reserving
from jaxpost.recipes.base import Fresh, Loaded, Model, Pretrained
from jaxpost.shard import MeshShape, make_mesh
from jaxpost.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Trained:
    """The base and what the run made of it, apart. Of a model directory that no run has changed, the delta is empty."""

    config: Any
    model: Decoder
    tokenizer: Tokenizer
    base: Tree
    delta: Tree
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """What lies over the base already, its weights bound to it."""

    @property
    def weights(self) -> Tree:
        """Ready for use: bound where the delta has a fast way of its own, as it is in training."""
        return delta.bind(self.base, self.delta)

    @property
    def folded(self) -> Tree:
        return delta.fold(self.base, self.delta)

    @property
    def apart(self) -> tuple[Tree, Tree]:
        """The base without the adapter that the run started from, and all that lies over it as one delta."""
        if not self.adapter:
            return self.base, self.delta
        return adapter.without(self.base, self.adapter), stack(self.adapter, self.delta)


def load(model: Model, mesh: Mesh) -> Loaded:
    """The model that a run starts from, under its adapter if it has one."""
    return over(base.plain(model, mesh), model, mesh)


def over(plain: Loaded, model: Model, mesh: Mesh) -> Loaded:
    """A model in memory under the adapter that `model` names: one from elsewhere, or what another run made of the same
    base. Such a run's own heads are left behind."""
    if isinstance(model, Fresh) or not model.adapter:
        return plain
    path = result(Path(model.adapter))
    if record.is_run(path):
        config = record.read(path)
        _check_base(path, config.model, model, "model.adapter")
        under = over(plain, config.model, mesh)
        made = {p: edit for p, edit in _made(path, config, under, mesh).items() if not p.startswith("heads/")}
        specs = {p: edit for p, edit in config.delta.within(path)(decoder.specs(under.config)).items() if p in made}
    else:
        under = plain
        made, specs = adapter.read(model.adapter, under.config, under.weights, mesh)
    adapter.check_startable(model.adapter, delta.spread(made))
    whole = stack(under.adapter, made) if under.adapter else made
    weights, stored = delta.bind(under.weights, made), delta.bind(under.specs, specs)
    return replace(under, weights=weights, specs=stored, adapter=whole)


def role(name: str, plain: Loaded, model: Model, mesh: Mesh, best: bool = False) -> Tree:
    """The weights of what another run made of a base that is in memory: no second copy of the base exists. `model` is
    how the base is described by the run that asks."""
    path = result(Path(name))
    if not record.is_run(path):
        raise Fault(f"{name} is no run directory; name that of a run over the same base")
    config = record.read(path)
    _check_base(path, config.model, model, "the run")
    under = over(plain, config.model, mesh)
    return delta.bind(under.weights, _made(path, config, under, mesh, best))


def _check_base(path: Path, theirs: Model, ours: Model, what: str) -> None:
    one, other = (m.path if isinstance(m, Pretrained) else f"random weights ({m.seed})" for m in (theirs, ours))
    same = one == other and (isinstance(ours, Pretrained) or theirs == ours)
    if not same:
        raise Fault(f"{what} {path}: it is a run over {one}, and this one is over {other}; they must share a base")


def result(path: Path) -> Path:
    """The directory of the run that made the model: of a run of several stages, that of the last one."""
    while record.is_run(path) and (stage := getattr(record.read(path), "result", None)):
        path = path / stage
    return path


def base_of(name: str) -> Model:
    """The model that the run of that directory starts from; or the one of that name, which `Pretrained` takes."""
    path = result(Path(name))
    if record.is_run(path):
        return record.read(path).model
    here = name in base.BUILT_IN or (path / "config.json").is_file()
    if not here and "/" in name and not remote.is_remote(name) and path.parent.is_dir():
        # Who has a directory of that name means what lies in it.
        hint = f"; {path.parent} is a directory here, so this is no name of the Hugging Face hub"
        raise Fault(f"{name}: no run and no model is there{hint if hub.is_elsewhere(name) else ''}")
    if not here and (name.startswith("runs/") or not hub.is_elsewhere(name)):
        raise Fault(
            f"{name} is neither a run directory, nor a model directory, nor one of {', '.join(base.BUILT_IN)}, nor "
            "org/name of the Hugging Face hub"
        )
    return Pretrained(name)


def read(name: str, best: bool = False, over: str = "") -> Trained:
    """The run of that directory at its latest (or best) checkpoint; or a model that `Pretrained` takes, as it is, or
    with the adapter of the directory `over` as its delta."""
    mesh = make_mesh(MeshShape())
    path, model = result(Path(name)), base_of(name)
    if not record.is_run(path):
        with jax.set_mesh(mesh):
            plain = load(model, mesh)
            made = adapter.read(over, plain.config, plain.weights, mesh)[0] if over else {}
        tokenizer = with_virtual(plain.tokenizer, Virtual(adapter.reserved(made))) if made else plain.tokenizer
        return Trained(None, plain.config, tokenizer, plain.weights, made)
    if over:
        raise Fault(f"{name} is a run, with a delta of its own; --adapter is laid over models, such as the run's base")
    config = record.read(path)
    with jax.set_mesh(mesh):
        loaded = load(config.model, mesh)
        made = _made(path, config, loaded, mesh, best)
    return Trained(
        config, loaded.config, reserving(loaded.tokenizer, config.delta), loaded.weights, made, loaded.adapter
    )


def _made(path: Path, config: Any, loaded: Loaded, mesh: Mesh, best: bool = False) -> delta.Delta:
    """The delta of the run of that directory and config, over the model that it starts from."""
    # The schedule's length has no part in the state, so any number of steps will do.
    optim, kind = replace(config.optim, warmup=0), config.delta.within(path)
    extra = getattr(config, "extra", None)
    assembly = assemble(loaded.config, loaded.specs, kind, optim, 1, mesh, loaded.tokenizer.encode, extra=extra)
    _, fixed = assembly.make(jax.random.fold_in(jax.random.key(config.train.seed), 1), loaded.weights)
    with Checkpoints(path / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(assembly.state, best).state
    return delta.role(delta.combine(state.trainable, fixed))


def delta_of(name: str) -> delta.Delta:
    """What the run of that name made, for another to start from."""
    if not record.is_run(result(Path(name))):
        raise Fault(f"{name} is no run directory, so there is no delta to start from")
    return read(name).delta
