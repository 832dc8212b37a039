"""Arguments that a public function does not have, or lacks: said with the nearest name, or with the place where they belong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, ParamSpec, TypeVar

from daskreg.errors import ArgumentError, closest

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)
ADDRESS_KEYS = ("level", "channel", "time", "spacing", "unit", "array", "missing", "axes")  # of '::key=value' behind a path
OPENED = ("spacing", "unit", "axes")  # those that ``open_volume`` takes as arguments
NEAR = 0.55  # how similar the nearest name has to be, 0 to 1
LISTED = 12  # names of arguments that a sentence has


def checked_arguments(
    others: Collection[str] = (), parts: Mapping[str, str] = MappingProxyType({}), **options: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function, to raise ArgumentError for arguments that it does not have or lacks.

    others: names that it takes as ``**keywords``;  parts: how names are written that are parts of an argument;  options: of its
    command, where the argument has another name.
    """
    written = {**parts, **{name: f"{argument}=" for name, argument in options.items()}}

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                found = _unknown(function, kwargs, others)
                if not found:
                    return function(*args, **kwargs)
            except TypeError:
                if (sentence := _unbound(function, args, kwargs)) is None:
                    raise
                raise ArgumentError(sentence) from None
            raise ArgumentError("\n".join(_sentence(function, name, others, written) for name in found))

        return call

    return decorate


def checked_constructor(cls: C) -> C:
    """Decorate a class, to raise ArgumentError for arguments that its constructor does not have or lacks."""
    cls.__init__ = checked_arguments()(cls.__init__)  # type: ignore[misc]  # the same signature
    return cls


def _unknown(function: Callable[..., Any], kwargs: Mapping[str, Any], others: Collection[str]) -> list[str]:
    """Names that are given and are no arguments."""
    code = inspect.unwrap(function).__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return [name for name in kwargs if name not in known and name not in others]


def _unbound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """A sentence where arguments are too many or too few; None where they fit."""
    signature, name = inspect.signature(function), _name(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        said = str(error)
    else:
        return None
    parameters = _parameters(function)
    placed = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    count = len(args) - (len(signature.parameters) - len(parameters))
    lacking = [p.name for p in placed[count:] if p.default is p.empty and p.name not in kwargs]
    names = [p.name for p in placed]
    if lacking:
        return f"{name}() lacks {' and '.join(map(repr, lacking))}; write {name}({', '.join([*names, '...'])})."
    if count > len(placed):
        first = f"the first {len(placed)} ({', '.join(names)})" if placed else "none"
        takes = f"{name}() was given {count} arguments without a name, and takes {first} so"
        return f"{takes}; name the others: {_example(parameters)}"
    return f"{name}(): {said}."


def _sentence(function: Callable[..., Any], name: str, others: Collection[str], written: Mapping[str, str]) -> str:
    """What is said about a name that is no argument."""
    what = f"{_name(function)}() has no argument {name!r}"
    if name in written:
        command = ", which is an option of the command" if written[name].endswith("=") else ""
        return f"{what}{command}; write {written[name]}."
    known = [p.name for p in _parameters(function) if p.kind is not p.VAR_KEYWORD] + sorted(others)
    if place := _place(name, known):
        return f"{what}; {place}."
    near = [k for k in known if name in k.split("_")] or [k for k in (closest(name, known, NEAR),) if k]
    if near:
        return f"{what}; did you mean {' or '.join(map(repr, near))}?"
    return f"{what}; it has {', '.join(known[:LISTED])}{', ...' if len(known) > LISTED else ''}."


def _place(name: str, known: Collection[str]) -> str | None:
    """Where something belongs that is no argument of this function: the configuration, a stage of it, or an image; else None."""
    if "config" in known or "stages" in known:
        from daskreg import config

        if name == "stages":
            return "stages are its configuration: write config=[daskreg.Affine(), daskreg.Deformable()]"
        if name in config.Config.model_fields and "config" in known:
            return f"it belongs in the configuration: write config=daskreg.Config(stages=[...], {name}=...)"
        if (kind := stage_with(name)) is not None:
            where = "config" if "config" in known else "stages"
            return f"it belongs in a stage: write {where}=[daskreg.{kind}, ...]"
    single = address_key(name)
    if single is not None and single not in known and name not in known:
        opened = f", or give daskreg.open_volume(image, {single}=...)" if single in OPENED else ""
        return f"it belongs to an image: write '::{single}=...' behind its path{opened}"
    return None


def address_key(name: str) -> str | None:
    """The key behind a path that a name is, in the singular or the plural; None where it is none."""
    single = name if name in ADDRESS_KEYS else name.removesuffix("s")
    return single if single in ADDRESS_KEYS else None


def stage_with(name: str) -> str | None:
    """How a stage is written that has a parameter, or a part with it, as ``Deformable(iterations=...)``; None where none has."""
    from daskreg import config
    from daskreg.parameters import TAGS

    for stage in (config.Deformable, config.Affine, config.Rigid, config.Search, config.Moments):
        if name in stage.model_fields and name not in TAGS:
            return f"{stage.__name__}({name}=...)"
    for part, registry in config.PARTS.items():
        for kind in registry.classes().values():
            if name in kind.model_fields and name not in TAGS:
                return f"Deformable({part}=daskreg.{kind.__name__}({name}=...))"
    return None


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Without ``self`` and ``cls``."""
    found = list(inspect.signature(function).parameters.values())
    return found[1:] if _is_method(function) else found


def _is_method(function: Callable[..., Any]) -> bool:
    return next(iter(inspect.signature(function).parameters), "") in ("self", "cls")


def _name(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _example(parameters: list[inspect.Parameter]) -> str:
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    chosen = next((n for n in ("output", "overwrite", "like") if n in named), named[0] if named else "NAME")
    return f"{chosen}=..."
