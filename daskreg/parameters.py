"""Bases of what a configuration holds: frozen values, checked when they are made. Every number has a lower and an upper bound.

The parameters of a similarity, an optimizer or a transform model also state what a plan needs to know of it before anything is
computed, and make its implementation.
"""

from __future__ import annotations

import inspect
import sys
from abc import abstractmethod
from collections.abc import Sequence
from reprlib import Repr
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from daskreg.errors import ConfigError, closest, require_known

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic._internal._model_construction import ModelMetaclass
    from pydantic.fields import FieldInfo
else:
    ModelMetaclass = type(BaseModel)  # it has no public name


TAGS = ("kind", "stage")  # fields that say which class it is
SHORT = Repr()  # of what was found: a wrong file can hold anything
SHORT.maxstring = SHORT.maxother = 80


def _no_truth(value: Any) -> Any:
    """``True`` is no number, although Python counts with it."""
    if isinstance(value, bool):
        raise ValueError("a number was expected")
    return value


def _two(value: Any) -> Any:
    """Whatever is no list is refused after this."""
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("two numbers were expected")
    return value


TWO = BeforeValidator(_two)  # of a pair of numbers
Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, BeforeValidator(_no_truth)]
Decay = Annotated[Number, Field(ge=0, le=0.999999)]  # of a running mean; 1 would never forget, and float32 rounds more to 1
FileAddress = Annotated[str, Field(min_length=1, max_length=4096)]
DeviceKind = Literal["cpu", "cuda"]
Storage = Literal["float32", "moments", "mixed"]


# what was expected, by the kind of error that Pydantic has
EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number was expected"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number was expected"),
    "finite_number": "a finite number was expected",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false was expected"),
    "greater_than": "more than {gt:g} was expected",
    "greater_than_equal": "{ge:g} or more was expected",
    "less_than": "less than {lt:g} was expected",
    "less_than_equal": "{le:g} or less was expected",
    "string_type": "text was expected",
    "string_too_short": "text of at least {min_length} characters was expected",
    "string_too_long": "text of at most {max_length} characters was expected",
    "literal_error": "{expected} was expected",
    **dict.fromkeys(("tuple_type", "list_type"), "a list was expected"),
    "too_short": "{min_length} or more entries were expected",
    "too_long": "{max_length} entries or less were expected",
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type"), "a name, or a mapping of its keys to values, was expected"
    ),
    "union_tag_not_found": "a mapping with the key {discriminator} was expected",
}


class Checked(ModelMetaclass):
    """The class of ``Model``: what is called with an impossible value raises ConfigError, as all of daskreg does."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **settings: Any) -> type:
        """A class; that of a module without a file has no source that docstrings of fields could be read from."""
        module = namespace.get("__module__")
        if module != "__main__" and getattr(sys.modules.get(str(module)), "__file__", None) is None:
            settings.setdefault("use_attribute_docstrings", False)  # from Python 3.13 on, Pydantic fails there
        return super().__new__(mcs, name, bases, namespace, **settings)

    def __call__(cls, *args: Any, **values: Any) -> Any:
        """An instance. Raises ConfigError naming the field, what it was given, and what was expected."""
        if args:
            first = next((n for n in vars(cls)["__pydantic_fields__"] if n not in TAGS), None)
            example = "" if first is None else f", as in {cls.__name__}({first}={SHORT.repr(args[0])})"
            raise ConfigError(f"{cls.__name__} takes its parameters by name{example}.")
        try:
            return super().__call__(**values)
        except ValidationError as error:
            raise ConfigError(f"{cls.__name__}: {explain(error, cls)}") from None

    def __dir__(cls) -> list[str]:
        """Without what is Pydantic's or Python's, for ``help()`` and completion."""
        return [name for name in super().__dir__() if not (name in OF_PYDANTIC or name.startswith("__"))]


OF_PYDANTIC = frozenset(dir(BaseModel)) - frozenset(dir(object))


class Model(BaseModel, metaclass=Checked):
    """Frozen; unknown keys, and numbers that are not finite or out of bounds, are refused with a ConfigError."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __init__(self, /, **values: Any) -> None:
        """Values by the names of their fields; the others have their defaults. Raises ConfigError."""
        super().__init__(**values)

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # Pydantic's mark of one that only passes values on

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Add what each field means to the class's docstring, for ``help()`` and the reference."""
        fields = [
            f"{name}{_range(field)}\n    {_meaning(cls, name)}" for name, field in cls.model_fields.items() if name not in TAGS
        ]
        if fields and cls.__doc__:
            cls.__doc__ = "\n\n".join([inspect.cleandoc(cls.__doc__), *fields])
        cls.__signature__ = _signature(cls)

    def __dir__(self) -> list[str]:
        """Without what is Pydantic's."""
        return [name for name in super().__dir__() if name not in OF_PYDANTIC]

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is not the default: ``LNCC(radius=3)``."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name not in TAGS and (field.is_required() or value != field.get_default(call_default_factory=True)):
                yield name, value

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values. Raises ConfigError for a name that is no field, and for an impossible value."""
        if not update:
            return super().model_copy(deep=deep)
        for name in update:
            require_known(f"field of {type(self).__name__}", name, type(self).model_fields)
        kept = super().model_copy(deep=deep)
        return type(self)(**{**{name: getattr(kept, name) for name in type(self).model_fields}, **update})


def _signature(cls: type[Model]) -> inspect.Signature:
    """Names and defaults; their types and ranges are in the docstring."""
    fields = ((name, field) for name, field in cls.model_fields.items() if name not in TAGS)
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
            )
            for name, field in fields
        ]
    )


class SimilarityParameters(Model):
    """Parameters of a similarity, what a plan has to know of it, and how it is made."""

    kind: str  # a Literal in each class: the word that selects it in a configuration
    label: ClassVar[str] = "loss"  # of the loss in a chart
    separable: ClassVar[bool] = False  # whether the gradient at a voxel needs no sum over all voxels, as the ``Similarity`` says
    seconds: ClassVar[Mapping[str, float]] = {
        "cpu": 0.07,
        "cuda": 1e-4,
    }  # of a deformable iteration, a megavoxel and a core (a GPU)

    def in_voxels(self, edge_mm: float | None) -> Self:
        """As they are at a level: what is stated in millimetres in voxels instead.

        edge_mm: edge of the level's voxels, ``Grid.edge_mm``; None where no unit of length is known
        """
        return self

    @property
    def reach(self) -> int:
        """Voxels around x, along each axis, whose moved values the loss and its gradient at x depend on through ``partial``."""
        return 0

    @property
    def scratch(self) -> int:
        """Bytes a voxel that ``partial`` leaves for ``finish`` in a linear stage; a deformable stage has buffers for them."""
        return 0

    def summed(self, planes: int) -> int:
        """Numbers of 8 bytes that a rank with so many planes gives to the sum over all ranks."""
        return 2 * planes

    @property
    @abstractmethod
    def gradient_scale(self) -> float:
        """Usual length of N dC/du where images scaled to [0, 1] disagree: what an optimiser takes for a clear gradient."""

    @abstractmethod
    def build(self, device: DeviceKind) -> Any:
        """The implementation, a ``daskreg.similarity.base.Similarity``."""


class OptimizerParameters(Model):
    """Parameters of an optimizer, what a plan has to know of it, and how it is made."""

    kind: str

    @property
    def storages(self) -> tuple[Storage, ...]:
        """In which its state can be kept."""
        return ("float32",)

    @property
    def fused_reach(self) -> int:
        """Taps on one side of the widest filter of the gradient that ``step`` applies without a buffer, on a GPU."""
        return 0

    @property
    def widest_filter(self) -> float:
        """The largest ``smooth_gradient`` that ``step`` can apply, in voxels."""
        return float("inf")

    @property
    def compares_filtered(self) -> bool:
        """Whether ``step`` compares the voxels within the filter of ``smooth_gradient``, which then has more than one."""
        return False

    @abstractmethod
    def state_bytes(self, storage: Storage) -> int:
        """Bytes a voxel of its state."""

    def swept_bytes(self, storage: Storage) -> int:
        """Bytes a voxel that stay from one iteration to the next out of core: the state, and the direction of the last step, but
        for an optimizer that restores it.
        """
        return self.state_bytes(storage) + 12

    @abstractmethod
    def build(self, storage: Storage, device: DeviceKind) -> Any:
        """The implementation, a ``daskreg.optimizers.base.Optimizer``."""


class ModelParameters(Model):
    """Parameters of a transform model, what a plan has to know of it, and how it is made."""

    kind: str
    shortens_steps: ClassVar[bool] = False  # whether an update does what ``BlockLayout.shortens`` asks for

    @property
    def storages(self) -> tuple[Storage, ...]:
        """In which an update can read the direction."""
        return ("float32",)

    @abstractmethod
    def reach(self, smooth_warp: float) -> int:
        """Planes around its own whose displacement an update of a rank's planes reads."""

    @abstractmethod
    def direction_reach(self, smooth_warp: float) -> int:
        """Planes around its own of which an update reads the direction."""

    @abstractmethod
    def state_bytes(self) -> int:
        """Bytes a voxel of the fields it keeps from one iteration to the next."""

    @abstractmethod
    def build(self, *arguments: Any) -> Any:
        """The implementation, a ``daskreg.models.base.TransformModel``."""


def _meaning(kind: type[Model], name: str) -> str:
    """The docstring of a field, or of the field of that name that it redefines, in indented lines."""
    described = (k.model_fields[name].description for k in kind.__mro__ if issubclass(k, Model) and name in k.model_fields)
    return next((inspect.cleandoc(d).replace("\n", "\n    ") for d in described if d), "")


def _range(field: FieldInfo) -> str:
    """`` : from 16 to 256, default 96``: what can be given, and what is taken when nothing is."""
    said = []
    bounds = {k: v for m in field.metadata for k in ("ge", "gt", "le", "lt") if (v := getattr(m, k, None)) is not None}
    if get_origin(field.annotation) is Literal:
        said.append(" or ".join(get_args(field.annotation)))
    elif len(bounds) == 2:
        (low, least), (high, most) = bounds.items()
        said.append(f"{'above' if low == 'gt' else 'from'} {least:g} {'below' if high == 'lt' else 'to'} {most:g}")
    if not field.is_required():
        said.append(f"default {_written(field.get_default(call_default_factory=True))}")
    return " : " + ", ".join(said) if said else ""


def _written(value: Any) -> str:
    return f"{type(value).__name__}()" if isinstance(value, Model) else str(value)


def explain(error: ValidationError, kind: type[Any]) -> str:
    """A sentence about the first few errors: key, what it held, what was expected. kind: the Model that was to be made.

    An item that is refused also makes its list too short, which says nothing new.
    """
    found = error.errors()
    errors = [e for e in found if e["type"] != "too_short" or not any(_is_inside(e["loc"], other["loc"]) for other in found)]
    return "; ".join(_one(e, kind) for e in errors[:3]) + "."


def _is_inside(place: Sequence[str | int], other: Sequence[str | int]) -> bool:
    """Whether the other place is within this one."""
    return len(other) > len(place) and tuple(other[: len(place)]) == tuple(place)


def _one(e: Any, kind: type[Any]) -> str:
    where = ".".join(str(k) for k in e["loc"]) or "the configuration"
    if e["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_nearest(str(e['loc'][-1]), _fields(kind, e['loc'][:-1]))}"
    if e["type"] == "union_tag_invalid":
        tag = str(e["ctx"]["tag"])
        known = [w.strip(" '") for w in e["ctx"]["expected_tags"].split(",")]
        return f"{where}: unknown name {tag!r}{_nearest(tag, known)}"
    if e["type"] == "missing":
        return f"{where} is missing"
    expected = EXPECTED[e["type"]].format(**e.get("ctx", {})) if e["type"] in EXPECTED else e["msg"].removeprefix("Value error, ")
    if e["type"] == "value_error" and isinstance(e["input"], dict):
        return f"{where}: {expected}" if e["loc"] else expected  # about several of its keys, or one that it has not
    return f"{where}: found {SHORT.repr(e['input'])}, {expected}"


def _fields(kind: type[Any], place: Sequence[str | int]) -> list[str]:
    """Names of the fields of the model at a place within one of this kind: keys of fields, indices, and tags of unions.

    A tag follows where several models may be, a key where it is one: ``similarity`` is both.
    """
    kinds = [kind]
    for step in place:
        inner = [k for field in (k.model_fields.get(step) for k in kinds) if field for k in _models(field.annotation)]
        tagged = [k for k in kinds if step in {k.model_fields[t].default for t in TAGS if t in k.model_fields}]
        kinds = (inner or tagged if len(kinds) == 1 else tagged or inner) or kinds
    return list(dict.fromkeys(name for k in kinds for name in k.model_fields))


def _models(annotation: Any) -> list[type[Model]]:
    """The models that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return [annotation]
    return [k for part in get_args(annotation) for k in _models(part)]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = closest(word, known)
    return f"; the nearest known name is {near!r}" if near else f"; known are {', '.join(sorted(known))}"
