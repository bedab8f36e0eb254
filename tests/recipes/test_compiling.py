# SPDX-License-Identifier: Apache-2.0
"""What a step keeps is chosen by what fits."""

import contextlib
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import pytest

from jaxpost import params
from jaxpost.delta import Lora
from jaxpost.faults import Fault
from jaxpost.models import decoder
from jaxpost.models.decoder import Decoder
from jaxpost.recipes import compiling, sft
from jaxpost.recipes.assembly import assemble
from jaxpost.recipes.compiling import GIB, Program, fitted, peak, program
from jaxpost.shard import MeshShape, make_mesh

SIZES = {"none": 9.0, "most": 5.0, "attention": 3.0, "result": 2.0, "full": 1.0}


@dataclass
class Needs:
    temp_size_in_bytes: int
    output_size_in_bytes: int = GIB
    alias_size_in_bytes: int = GIB
    argument_size_in_bytes: int = GIB // 2


@dataclass
class Compiled:
    name: str
    remat: str

    def memory_analysis(self):
        return Needs(int(SIZES[self.remat] * GIB))


@dataclass
class Said:
    """Programs that compile to their names, and what was said while they did."""

    lines: list[str] = field(default_factory=list)
    fails: tuple[str, ...] = ()

    def programs(self, config):
        remat, said = config.train.remat, self

        class Named(Program):
            def compile(self):
                if remat in said.fails:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory while compiling")
                return Compiled(self.call, remat)

        return {name: Named(name, ()) for name in ("step", "evaluate")}

    def during(self, line):
        self.lines.append(line)
        return contextlib.nullcontext()


@pytest.fixture
def mesh():
    return make_mesh(MeshShape(), jax.devices()[:1])


def config(remat="auto", memory=0.0):
    return sft.Config("run", train=sft.Training(remat=remat, memory=memory))


@pytest.mark.parametrize(
    "memory, remat", [(99, "most"), (5.5, "most"), (5.4, "attention"), (2.5, "result"), (1.5, "full")]
)
def test_the_fastest_that_fits_a_budget(mesh, memory, remat):
    said = Said()
    compiled, chosen = fitted(config(memory=memory), said.programs, mesh, said.during)
    assert chosen == remat and list(compiled) == ["step", "evaluate"]
    assert {each.remat for each in compiled.values()} == {remat}
    assert said.lines[-2:] == [f"compiling step (remat {remat})", "compiling evaluate"]


@pytest.mark.parametrize("free, remat", [(5.0, "most"), (2.9, "result")])
def test_the_fastest_that_fits_what_is_free(monkeypatch, mesh, free, remat):
    """Arguments are there already, and count no more."""
    monkeypatch.setattr(compiling, "_free", lambda mesh: free / compiling.SHARE)
    said = Said()
    assert fitted(config(), said.programs, mesh, said.during)[1] == remat


def test_a_run_that_goes_on_keeps_what_it_had_unless_it_no_longer_fits(mesh):
    said = Said()
    assert fitted(config(memory=99), said.programs, mesh, said.during, "result")[1] == "result"
    assert said.lines == ["compiling step (remat result)", "compiling evaluate"]
    assert fitted(config(memory=3.6), said.programs, mesh, said.during, "most")[1] == "attention"
    assert fitted(config("full", memory=99), said.programs, mesh, said.during, "most")[1] == "full"


def test_nothing_is_spared_where_memory_is_unknown(mesh):
    said = Said()
    assert fitted(config(), said.programs, mesh, said.during)[1] == "none"
    assert said.lines == ["compiling step (remat none)", "compiling evaluate"]


def test_what_was_asked_for_is_compiled_and_nothing_else(mesh):
    said = Said()
    assert fitted(config("attention", memory=4), said.programs, mesh, said.during)[1] == "attention"
    with pytest.raises(
        Fault, match=r"the step needs 2\.5 GiB more .* train.remat attention; .*, or set train.remat auto"
    ):
        fitted(config("attention", memory=1), said.programs, mesh, said.during)


def test_what_never_fits_is_said_before_it_runs(mesh):
    said = Said()
    with pytest.raises(
        Fault, match=r"the step needs 0\.5 GiB more on each device than train.memory allows, with train.remat full"
    ):
        fitted(config(memory=1), said.programs, mesh, said.during)
    assert len(said.lines) == 4


def test_a_compiler_that_runs_out_of_memory_says_that_it_does_not_fit(mesh):
    said = Said(fails=("most", "attention"))
    assert fitted(config(memory=99), said.programs, mesh, said.during)[1] == "result"
    with pytest.raises(Fault, match="the step needs more memory on each device"):
        fitted(config("most"), said.programs, mesh, said.during)


def test_other_errors_are_not_taken_for_a_lack_of_memory(mesh):
    broken = program(lambda x: jnp.zeros(3) + jnp.zeros(x), mesh, 4)
    with pytest.raises(TypeError):
        fitted(config("full"), lambda config: {"step": broken}, mesh, Said().during)


def test_a_real_step_is_fitted_by_what_the_compiler_says(mesh):
    """Of a model deep enough that what its blocks keep is most of what the step takes."""
    model = Decoder(vocab=64, d=64, layers=12, heads=4, kv_heads=2, head_size=16, ffn=256)
    specs = params.filled(decoder.specs(model))
    made = config()
    made = replace(made, batches=sft.Batches(rows=8, seq_len=64), delta=Lora(rank=2))
    with jax.set_mesh(mesh):
        assembly = assemble(model, specs, made.delta, made.optim, 10, mesh)

        def programs(config):
            return sft.programs(config, assembly)

        sizes = {
            remat: peak(programs(replace(made, train=replace(made.train, remat=remat)))["step"].compile(), mesh)[0]
            for remat in ("most", "full")
        }
        assert sizes["full"] < 0.8 * sizes["most"]
        between = replace(made, train=replace(made.train, memory=1.1 * sizes["full"] / GIB))
        compiled, remat = fitted(between, programs, mesh, Said().during)
    assert remat in ("result", "full") and set(compiled) == {"step", "evaluate"}
