# SPDX-License-Identifier: Apache-2.0
"""Programs of a run, compiled as suits what the mesh is made of and fits its memory."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxpost import shard
from jaxpost.faults import Fault
from jaxpost.models.remat import FASTEST

GIB = 2**30
SHARE = 0.95
"""Of what is free, what a step that was chosen may take: batches and libraries' workspaces want some too."""

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
    before: str = "",
) -> tuple[dict[str, Any], str]:
    """The compiled programs of a config, and what its step keeps for the backward pass: where `train.remat` is `auto`
    the fastest policy with which the step fits into `train.memory` GiB a device, or well into what is free there. A run
    that goes on keeps what it had `before`, unless that no longer fits.

    Each is compiled `during` what that makes of a sentence about it. Raises `Fault` where nothing fits; what is asked
    for by name, without a limit, is taken as it is.
    """
    chosen, memory = config.train.remat, config.train.memory
    auto, free = chosen == "auto", None if memory else _free(mesh)
    policies: tuple[Any, ...] = (chosen,)
    if auto:
        policies = FASTEST if memory or free is not None else ("none",)
        policies = (before, *(policy for policy in policies if policy != before)) if before else policies
    over = math.inf
    for remat in policies:
        made = programs(replace(config, train=replace(config.train, remat=remat)))
        with during(f"compiling step (remat {remat})" if auto else "compiling step"):
            step = _compiled(made["step"])
        if step is not None:
            most, given = peak(step, mesh)
            # Weights and state are there already, and count no more among what is free.
            over = most / GIB - memory if memory else (most - given) / GIB - SHARE * free if auto and free else 0.0
            if over <= 0:
                done = {"step": step}
                for name in filter(lambda name: name != "step", made):
                    with during(f"compiling {name}"):
                        done[name] = made[name].compile()
                return done, remat
    more = "more memory" if over == math.inf else f"{over:.1f} GiB more"
    raise Fault(
        f"the step needs {more} on each device than {'train.memory allows' if memory else 'there is'}, with "
        f"train.remat {policies[-1]}; lower the rows or their length, raise train.microbatches, or use more devices"
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


def _free(mesh: Mesh) -> float | None:
    """GiB that are free on the fullest device of the mesh, where they tell. All processes find the same, and so compile
    the same programs."""
    own = shard.free(device for device in mesh.devices.flat if device.process_index == jax.process_index())
    least = -1.0 if own is None else own / GIB
    if jax.process_count() > 1:
        least = float(np.min(multihost_utils.process_allgather(np.float32(least))))
    return None if least < 0 else least
