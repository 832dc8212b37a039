"""What is read of OME-NGFF 0.6 metadata, as a schema."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from daskreg.storage.zarr.schema import Name, Number, Schema


class AxisSchema(Schema):
    """An axis of a coordinate system."""

    name: Name
    type: Name | None = None
    unit: Name | None = None
    orientation: Any = None


class SystemSchema(Schema):
    """A coordinate system."""

    name: Name
    axes: list[AxisSchema]


class EndSchema(Schema):
    """The input or output of a transformation, written as an object or as its name alone."""

    name: Name | None = None
    path: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class StepSchema(Schema):
    """A transformation: of the fields, those that its type has."""

    type: Name
    name: Name | None = None
    input: EndSchema | None = None
    output: EndSchema | None = None
    scale: list[Number] | None = None
    translation: list[Number] | None = None
    rotation: list[list[Number]] | None = None
    affine: list[list[Number]] | None = None
    mapAxis: list[int] | None = None
    path: Name | None = None
    interpolation: Name = "linear"
    transformations: list[StepSchema] | None = None
    forward: StepSchema | None = None

    @field_validator("mapAxis")
    @classmethod
    def _is_a_permutation(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and sorted(value) != list(range(len(value))):
            raise ValueError(f"{value} is no permutation of the axes 0 to {len(value) - 1}")
        return value


class DatasetSchema(Schema):
    """One resolution, placed by one transformation."""

    path: Name
    coordinateTransformations: list[StepSchema] = Field(min_length=1, max_length=1)


class ImageSchema(Schema):
    """A multiscale image or field."""

    coordinateSystems: list[SystemSchema] = Field(min_length=1)
    datasets: list[DatasetSchema] = Field(min_length=1)
    type: Any = None


class SceneSchema(Schema):
    """Coordinate systems and the transformations between them."""

    coordinateSystems: tuple[SystemSchema, ...] = ()
    coordinateTransformations: tuple[StepSchema, ...] = ()
