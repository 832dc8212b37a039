"""The types of the fields of a configuration: their bounds, and parts of any registered kind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, WrapValidator

from daskreg.parameters import Model, ModelParameters, Number, OptimizerParameters, SimilarityParameters, Whole
from daskreg.registry import MODELS, OPTIMIZERS, SIMILARITIES, Registry

LARGEST = 1e30  # of an intensity


def _intensity(*words: str) -> Any:
    """The type of a field that takes a number, NaN under its name (JSON and equality have none), or another word."""
    known = ("nan", *words)

    def check(value: Any) -> float | str:
        if isinstance(value, float) and math.isnan(value):
            return "nan"
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
        if not number and value not in known:
            raise ValueError(f"a number from {-LARGEST:g} to {LARGEST:g}, or {' or '.join(known)}, was expected")
        checked: float | str = value
        return checked

    schema = {"anyOf": [{"type": "number", "minimum": -LARGEST, "maximum": LARGEST}, {"enum": list(known)}]}
    return Annotated[Any, PlainValidator(check), WithJsonSchema(schema)]


if TYPE_CHECKING:
    Intensity = float | str
    BackgroundChoice = float | str
else:
    Intensity, BackgroundChoice = _intensity(), _intensity("auto")
Scales = Annotated[tuple[Annotated[Whole, Field(ge=1, le=256)], ...], Field(min_length=1, max_length=32)]
Iterations = Annotated[tuple[Annotated[Whole, Field(ge=0, le=100_000)], ...], Field(min_length=1, max_length=32)]
Tolerance = Annotated[Number, Field(ge=0, le=1)]
Window = Annotated[Whole, Field(ge=3, le=10_000)]
Sigma = Annotated[Number, Field(ge=0, le=16)]  # voxels of a level; a filter reads twice as many on each side
Percentage = Annotated[Number, Field(ge=0, le=100)]


def _tagged(registry: Registry, base: type[Model]) -> Any:
    """The type of a field that takes parameters of any registered kind: an instance, a mapping with the key ``kind``, or the
    kind alone.
    """
    kinds = tuple(registry.classes().values())
    union = Annotated[Union[kinds], Field(discriminator="kind")] if len(kinds) > 1 else kinds[0]  # noqa: UP007  # made of a tuple

    def parse(value: Any, handler: Any) -> Any:
        if isinstance(value, base):  # also of a kind that is not registered
            kind: str = vars(value)["kind"]
            known = registry.classes().get(kind)
            if known is not None and type(value) is not known:
                own = type(value).__name__
                raise ValueError(f"{own} has the kind {kind!r} of {known.__module__}.{known.__name__}; give it another kind")
            return value
        return handler({"kind": value} if isinstance(value, str) else value)

    def dump(value: Any) -> Any:
        return value.model_dump(mode="json")

    return Annotated[union, WrapValidator(parse), PlainSerializer(dump)]


def parameters(registry: Registry, kind: str) -> Any:
    """Those of a kind with their defaults."""
    return registry.classes()[kind]()


if TYPE_CHECKING:
    AnySimilarity = SimilarityParameters
    AnyOptimizer = OptimizerParameters
    AnyModel = ModelParameters
else:
    AnySimilarity = _tagged(SIMILARITIES, SimilarityParameters)
    AnyOptimizer = _tagged(OPTIMIZERS, OptimizerParameters)
    AnyModel = _tagged(MODELS, ModelParameters)
