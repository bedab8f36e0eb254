# SPDX-License-Identifier: Apache-2.0
"""Programs of a run, compiled as suits what the mesh is made of and fits its memory."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from jaxpost.faults import Fault
from jaxpost.models.remat import FASTEST

GIB = 2**30

_OPTIONS: Mapping[str, Mapping[str, bool]] = {
    # What a layer scan keeps is written over whole; XLA would fill it with zeros first (2 % of a step on an H200).
    "gpu": {"xla_gpu_enable_dus_accumulator_zero_init_elimination": True},
}


@dataclass(frozen=True)
class Program:
    """A compiled piece of a run: what is called, and abstract arguments (shapes, types, places) to compile it for."""

    call: Any
    arguments: tuple[Any, ...]

    def compile(self) -> Any:
        return self.call.lower(*self.arguments).compile()


def program(function: Callable[..., Any], mesh: Mesh, *arguments: Any, donated: tuple[int, ...] = ()) -> Program:
    """The function as a program for the devices of the mesh; donated arguments are overwritten by results."""
    options = _OPTIONS.get(mesh.devices.flat[0].platform)
    call = jax.jit(function, donate_argnums=donated, compiler_options=dict(options) if options else None)
    return Program(call, arguments)


def fitted(
    config: Any,
    programs: Callable[[Any], Mapping[str, Program]],
    mesh: Mesh,
    during: Callable[[str], AbstractContextManager[Any]],
) -> tuple[dict[str, Any], str]:
    """The compiled programs of a config, and what its step keeps for the backward pass: where `train.remat` is `auto`
    the fastest policy with which the step fits into `train.memory` GiB a device, or into what is free there.

    Each is compiled `during` what that makes of a sentence about it. Raises `Fault` where nothing fits.
    """
    chosen = config.train.remat
    limited = bool(config.train.memory) or _free(mesh) is not None
    policies = (chosen,) if chosen != "auto" else FASTEST if limited else ("none",)
    over = math.inf
    for remat in policies:
        made = programs(replace(config, train=replace(config.train, remat=remat)))
        with during(f"compiling step (remat {remat})" if chosen == "auto" else "compiling step"):
            step = _compiled(made["step"])
        over = math.inf if step is None else _over(step, mesh, config.train.memory)
        if over <= 0:
            done = {"step": step}
            for name in filter(lambda name: name != "step", made):
                with during(f"compiling {name}"):
                    done[name] = made[name].compile()
            return done, remat
    more = "more memory" if over == math.inf else f"{over:.1f} GiB more"
    raise Fault(
        f"the step needs {more} on each device than there is, with train.remat {policies[-1]}; lower the rows or their "
        "length, raise train.microbatches, or use more devices"
        + ("" if policies[-1] == "full" else ", or set train.remat auto")
    )


def _compiled(step: Program) -> Any:
    """The compiled step; None where a compiler that places every byte (TPUs') finds that it does not fit."""
    try:
        return step.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise


def peak(step: Any, mesh: Mesh) -> tuple[int, int]:
    """Bytes of a device that a compiled program holds at its fullest, and those of its arguments among them."""
    needs = step.memory_analysis()
    given = needs.argument_size_in_bytes
    held = given + needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    if mesh.devices.flat[0].platform == "tpu":  # there temporaries are counted that share their place
        held = getattr(needs, "peak_memory_in_bytes", 0) or held
    return held, given


def _over(step: Any, mesh: Mesh, memory: float) -> float:
    """How many GiB the step needs beyond what it may have; zero or below where it fits, or nobody knows."""
    most, given = peak(step, mesh)
    if memory:
        return most / GIB - memory
    free = _free(mesh)  # weights and state are there already
    return 0.0 if free is None else (most - given - free) / GIB


def _free(mesh: Mesh) -> int | None:
    """Bytes that are free on a device of the mesh, where it tells."""
    device = next((d for d in mesh.devices.flat if d.process_index == jax.process_index()), None)
    stats = (device.memory_stats() or {}) if device is not None else {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
