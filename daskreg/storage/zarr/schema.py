"""Metadata checked against a schema before anything is computed from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from daskreg.errors import Unreadable

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, lt=1 << 48)]
Name = Annotated[str, Field(strict=True)]
NumberTriple = tuple[Number, Number, Number]
M = TypeVar("M", bound=BaseModel)
SHOWN = 60  # characters of a value that is wrong


class Schema(BaseModel):
    """Keys that are not known are left to their owners."""

    model_config = ConfigDict(extra="allow", frozen=True)


class GridSchema(Schema):
    """The grid that daskreg keeps beside the metadata of an image."""

    shape: tuple[Count, Count, Count]
    spacing: NumberTriple
    origin: NumberTriple
    direction: tuple[NumberTriple, NumberTriple, NumberTriple]
    unit: Name | None
    oriented: bool


class StateSchema(Schema):
    """The attributes of a run, as far as other code relies on them."""

    format: Annotated[int, Field(strict=True)]
    complete: Annotated[bool, Field(strict=True)]
    fixed: GridSchema
    moving: GridSchema
    provenance: dict[str, Any] = {}
    recipe: dict[str, Any] = {}


def validated(model: type[M], tree: Any, name: str, where: str) -> M:
    """The tree as the model. Raises Unreadable naming the store, the key, what is wrong there and what stands there.

    where: the place of the tree in the metadata
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return model.model_validate(tree)
    except (ValidationError, RecursionError) as error:
        raise Unreadable(f"{name}: its metadata is invalid at {where}{_explained(error)}; repair it.") from None


def _explained(error: ValidationError | RecursionError) -> str:
    if not isinstance(error, ValidationError):
        return ": it is nested too deeply"
    errors = error.errors()
    members = [e for e in errors if e["type"] != "too_short" or not _has_members(errors, e["loc"])]
    first = min(members, key=lambda e: len(e["loc"]))  # that of a union: the one that is not about its members
    path = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in first["loc"])
    found = "" if first["type"] == "missing" or isinstance(first["input"], Mapping | list) else f" ({_short(first['input'])})"
    return f"{path}: {first['msg'].removeprefix('Value error, ').rstrip('.')}{found}"


def _has_members(errors: Sequence[Any], place: tuple[Any, ...]) -> bool:
    """Whether some are about the members of what stands there: a list is too short where its members are invalid."""
    return any(len(e["loc"]) > len(place) and e["loc"][: len(place)] == place for e in errors)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
