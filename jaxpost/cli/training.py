# SPDX-License-Identifier: Apache-2.0
"""Verbs of a run: which configs there are, and training what one says."""

import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.padding import Padding

from jaxpost.cli.configured import configured
from jaxpost.cli.terminal import escaped, say
from jaxpost.faults import Fault

Positional = tyro.conf.Positional


def train(arguments: list[str]) -> None:
    """CONFIG [--field value ...]: train what a config file (or the config of a run directory) says."""
    from jaxpost.recipes import configs
    from jaxpost.train.loop import Stopped

    name, rest = config_name("train", arguments)
    config = configured(name, rest, f"jaxpost train {name}")
    try:
        configs.recipe(config).main(config, Path(config.run))
    except Stopped as stopped:
        say(f"[yellow]{stopped}; start the same command again to go on from there[/yellow]")
        sys.exit(stopped.code)


def list_configs(directory: Positional[Path] = Path("configs")) -> None:
    """List the configs of a directory, with what each is for."""
    from jaxpost.recipes import configs

    found = {path: configs.listed(path) for path in sorted(directory.glob("*.py"))}
    if not any(names for _, names in found.values()):
        raise Fault(f"{directory} holds no config files; run this in a checkout, or name a directory")
    for path, (purpose, names) in found.items():
        if names:
            say(f"[bold]{escaped(str(path))}[/bold]  {', '.join(names)}")
            Console(highlight=False).print(Padding(escaped(purpose), (0, 0, 0, 4)))


def config_name(verb: str, arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        raise Fault(f"jaxpost {verb} needs a config: a file such as configs/flan_nano_lora.py, or a run directory")
    return arguments[0], arguments[1:]
