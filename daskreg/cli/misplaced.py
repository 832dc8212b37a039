"""What is said about an option that a command does not have: where it belongs, or the nearest name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from daskreg.arguments import NEAR, address_key, stage_with
from daskreg.errors import closest

MOST_COMMANDS = 3  # that are named
RECIPE = "'daskreg register --preset brain --print-config > recipe.yaml' writes one to start from, for --config recipe.yaml"


def explain(error: Any, commands: Any) -> None:
    """Complete the message of an option that does not exist. commands: the group of all commands."""
    option, command = error.option_name, error.ctx.command
    known = options(command)
    if command is commands:
        said = _behind(option, _having(option, commands))
    else:
        said = _place(option.lstrip("-").replace("-", "_"), known) or _of_others(option, _having(option, commands))
    if near := None if said else closest(option.lstrip("-"), [name.lstrip("-") for name in known], NEAR):
        said = f"did you mean --{near}?"
    if said:
        error.message, error.possibilities = f"No such option: {option}; {said}", None


def options(command: Any) -> list[str]:
    """The long options of a command."""
    return [name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("--")]


def _having(option: str, commands: Any) -> list[str]:
    return [name for name, c in commands.commands.items() if any(option in p.opts for p in c.params)]


def _behind(option: str, having: Collection[str]) -> str:
    """Of an option that stands before the command."""
    return f"it stands behind the command, as in 'daskreg {next(iter(having))} ... {option} ...'." if having else ""


def _place(name: str, known: Collection[str]) -> str:
    """Where something belongs that is no option: an image, or a stage of the configuration."""
    from daskreg.config import Config

    if (key := address_key(name)) is not None:
        return f"it belongs to an image: write '::{key}=...' behind its path."
    if "--config" not in known:
        return ""
    if name in Config.model_fields or stage_with(name):
        where = "a key" if name in Config.model_fields else "a key of a stage"
        return f"it is {where} of a configuration: {RECIPE}."
    return ""


def _of_others(option: str, having: Collection[str]) -> str:
    return f"it is an option of {', '.join([*having][:MOST_COMMANDS])}." if having else ""
