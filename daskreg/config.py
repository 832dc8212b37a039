"""What a user can choose, each default once, with its unit and its reason. A YAML file holds the same tree."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from daskreg.errors import ConfigError
from daskreg.field_types import (
    AnyModel,
    AnyOptimizer,
    AnySimilarity,
    BackgroundChoice,
    Intensity,
    Iterations,
    Percentage,
    Scales,
    Sigma,
    Tolerance,
    Window,
    parameters,
)
from daskreg.parameters import (
    SHORT,
    TWO,
    FileAddress,
    Model,
    Number,
    Storage,
    Whole,
    explain,
)
from daskreg.registry import MODELS, OPTIMIZERS, SIMILARITIES
from daskreg.yaml_file import read_yaml

DeviceName = Literal["auto", "cpu", "cuda"]  # where kernels run; auto: on GPUs where every worker has one
PARTS = {"similarity": SIMILARITIES, "optimizer": OPTIMIZERS, "model": MODELS}  # of a stage, which have parameters of their own


class Stage(Model):
    """What every stage has."""

    @model_validator(mode="before")
    @classmethod
    def _own_parameters(cls, data: Any) -> Any:
        """A parameter of a part, given to the stage, is refused with what to write; so is a class in place of a part."""
        for part, given in data.items() if isinstance(data, dict) else ():
            if part in PARTS and isinstance(given, type):
                raise ValueError(f"its {part} is the class {given.__name__}; write {part}={given.__name__}()")
        for key in set(data) - set(cls.model_fields) if isinstance(data, dict) else ():
            for part in (p for p in PARTS if p in cls.model_fields):
                kinds = [k for k in PARTS[part].classes().values() if key in k.model_fields]
                usual = type(cls.model_fields[part].get_default(call_default_factory=True))
                if kinds:
                    kind, value = usual if usual in kinds else kinds[0], SHORT.repr(data[key])
                    raise ValueError(f"{key!r} is a parameter of its {part}; write {part}={kind.__name__}({key}={value})")
        return data

    @property
    def name(self) -> str:
        """The word that selects it in a configuration."""
        return str(self.stage)  # type: ignore[attr-defined]

    def in_voxels(self, edge_mm: float | None) -> Self:
        """As it is at a level whose voxels have that edge (``Grid.edge_mm``): all lengths of its similarity in voxels."""
        return self


class Moments(Stage):
    """Bring the centres of mass together, and, if asked, the principal axes."""

    stage: Literal["moments"] = "moments"
    orientation: bool = False
    """Whether the principal axes are aligned too, by the best of their four proper sign choices. For elongated objects without a
    search; where rotations are unknown, ``Search(rotations="fine")`` is surer.
    """


class Search(Stage):
    """Global search of the translation, by cross-correlation over all shifts, for every candidate rotation."""

    stage: Literal["search"] = "search"
    size: Whole = Field(96, ge=16, le=256)
    """Voxels along the longest axis of the coarse grid that is searched; ``rotations="fine"`` takes fewer. Raise it where
    the structures that tell positions apart vanish at that size.
    """
    rotations: Literal["none", "right-angles", "fine"] = "none"
    """Which rotations are tried: the given one alone, 24 by right angles, or 648 that reach every rotation, and as many more
    where none is clearly the best, compared by the directions of edges. ``right-angles`` for axes in the wrong order,
    ``fine`` for samples that were mounted anew.
    """
    flips: bool = False
    """Whether mirrored candidates are tried as well. For archives whose handedness is in doubt; symmetric objects match both
    ways.
    """
    contrast: Literal["same", "any"] = "same"
    """``any`` compares edges instead of intensities: for two modalities or stains."""
    scale: Number = Field(1.0, ge=1, le=4)
    """How many times larger or smaller the moving image may show things, as a ratio. Raise it for expansion, clearing that
    shrinks, and wrong voxel sizes; each size in between costs a search.
    """
    overlap: Number = Field(0.25, gt=0, lt=1)
    """Least share of the smaller image that a candidate must cover. Lower it where the images have less than a quarter in common;
    small overlaps match by chance more often.
    """


class Optimised(Stage):
    """A stage that runs through levels."""

    similarity: AnySimilarity
    """What is minimised: ``mse``, ``lncc``, ``mi`` or ``ngf``, or an object with parameters. Choose it by the contrast of the
    two images.
    """
    scales: Scales
    """Levels, coarse to fine: k makes voxels k times the fixed image's finest spacing. Begin coarser for larger motion, end
    coarser to save time: a level at 2 costs an eighth of that at 1.
    """
    iterations: Iterations
    """Iterations of each level at most; one number is that of every level. Raise them where the report shows a loss that still
    falls at the end of a level.
    """
    tolerance: Tolerance
    """A level ends when the loss falls by less than this part of itself an iteration; 0: only after all ``iterations``. Lower
    it for a little more accuracy at more time.
    """
    window: Window = 10
    """Iterations over which that fall is averaged. Raise it where a noisy loss ends levels early."""

    def in_voxels(self, edge_mm: float | None) -> Self:
        """See ``Stage.in_voxels``."""
        similarity = self.similarity.in_voxels(edge_mm)
        return self if similarity is self.similarity else self.model_copy(update={"similarity": similarity})

    @field_validator("scales", "iterations", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        """``100x50x20``, a number or a list."""
        if isinstance(value, str):
            if not all(v.strip().isdecimal() for v in value.split("x")):
                raise ValueError("whole numbers were expected, coarse to fine as in 4x2x1")
            return [int(v) for v in value.split("x")]
        return [value] if isinstance(value, int) else value

    @model_validator(mode="before")
    @classmethod
    def _iterations_of_each_scale(cls, data: Any) -> Any:
        """One number of iterations is that of every level; scales without iterations get the usual ones."""
        if not isinstance(data, dict) or not {"scales", "iterations"} & data.keys():
            return data
        with suppress(ValueError, TypeError):  # what cannot be is refused after this
            scales = cls._one_or_many(data.get("scales", cls.model_fields["scales"].default))
            given = cls._one_or_many(data["iterations"]) if "iterations" in data else [cls._usual(k) for k in scales]
            one_for_all = isinstance(data.get("iterations"), int | str) and len(given) == 1 and given[0] >= 0
            return {**data, "iterations": given * len(scales) if one_for_all else given}
        return data

    @staticmethod
    def _usual(scale: int) -> int:
        return 200 if scale > 2 else 50 * scale

    @model_validator(mode="after")
    def _as_many(self) -> Optimised:
        if len(self.scales) != len(self.iterations):
            raise ValueError(
                f"scales {self.scales} and iterations {self.iterations} must be as many; a single number, as in iterations=50, "
                "is that of every scale"
            )
        if any(fine > coarse for coarse, fine in pairwise(self.scales)):
            raise ValueError(f"scales {self.scales} go from fine to coarse; write the coarsest first")
        return self


class Linear(Optimised):
    """What rigid, similarity and affine share."""

    similarity: AnySimilarity = Field(default_factory=lambda: parameters(SIMILARITIES, "mi"))
    scales: Scales = (8, 4)
    iterations: Iterations = (60, 40)
    # a quasi-Newton step is dear, and near the optimum gains little by the loss yet much in place
    tolerance: Tolerance = 1e-6
    window: Window = 5


class Rigid(Linear):
    """Rotation and translation: 6 parameters."""

    stage: Literal["rigid"] = "rigid"


class SimilarityStage(Linear):
    """Rotation, translation and one scale: 7 parameters."""

    stage: Literal["similarity"] = "similarity"


class Affine(Linear):
    """Twelve parameters."""

    stage: Literal["affine"] = "affine"
    scales: Scales = (4, 2)
    iterations: Iterations = (60, 40)
    stiffness: Number = Field(0.0, ge=0, le=1e6)
    """A stretch by e beyond the map that the stage begins with has to gain e^2 times so much of the loss; 0: it costs nothing.
    Raise it (10 in the preset ``multimodal``) where two modalities of one object must not be stretched onto each other.
    """


class Deformable(Optimised):
    """A displacement at every voxel of the fixed image.

    Earlier names are read too: ``step``, in half voxels, for ``maximum_step``; ``betas`` for those of the optimizer Adam.
    """

    stage: Literal["deformable"] = "deformable"
    similarity: AnySimilarity = Field(default_factory=lambda: parameters(SIMILARITIES, "lncc"))
    scales: Scales = (4, 2, 1)
    iterations: Iterations = (200, 100, 50)
    tolerance: Tolerance = 1e-4
    maximum_step: Number = Field(0.25, ge=1e-6, le=0.5)
    """Longest step of an iteration, in voxels of the level. 0.25 keeps the map invertible; lower it where folds appear."""
    smooth_gradient: Sigma = 1.0
    """Standard deviation of the Gaussian that smooths each step, in voxels of the level (fluid regularisation). Raise it for
    smoother motion and against noise, lower it for detail.
    """
    smooth_warp: Sigma = 0.5
    """Standard deviation of the Gaussian that smooths the whole displacement after each step, in voxels of the level (elastic
    regularisation). Raise it against folds and where structures are torn, lower it where large local motion is not reached.
    """
    optimizer: AnyOptimizer = Field(default_factory=lambda: parameters(OPTIMIZERS, "adam"))
    """``adam`` moves every voxel that has a gradient by about as much; ``sgd`` moves those more that have clear edges, which
    is calmer between two modalities.
    """
    model: AnyModel = Field(default_factory=lambda: parameters(MODELS, "displacement"))
    """How steps make a map; ``displacement`` composes them. Others are yours to add."""
    moving_oversampling: Whole = Field(1, ge=1, le=4)
    """Voxels of the moving image at a coarse level are so many times smaller than the fixed image's along each axis, as far as
    the image has them, and smoothed until interpolation leaves it as smooth as the fixed one. 2 keeps interpolation from
    moving what lies in place; the level's moving image takes eight times the memory.
    """
    iterations_per_sweep: Whole = Field(1, ge=1, le=8)
    """Iterations of a level that a sweep over fields out of memory does (``--state disk`` or ``host``): these are read and
    written once for all of them, in place of once each. 2 to 4 where a disk is what a run waits for. For that the scale of a step
    follows from the longest direction before the sweep, in memory too, and longer steps are shortened to ``maximum_step``.
    """
    storage: Storage = "float32"
    """How numbers are kept, to save memory: ``mixed`` on a GPU keeps images, gradient and optimizer state in 16 bits,
    ``moments`` on a CPU the optimizer's state. Changes the result within the accuracy of a registration.
    """

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, data: Any) -> Any:
        """``step`` and ``betas``, as recipes and runs of earlier versions have them."""
        if not isinstance(data, dict):
            return data
        tree = dict(data)
        step, betas = tree.pop("step", None), tree.pop("betas", None)
        for earlier, found, name in (("step", step, "maximum_step"), ("betas", betas, "optimizer")):
            if found is not None and name in tree:
                raise ValueError(f"{earlier!r} is an earlier name of {name!r}: give one of them")
        if isinstance(step, int | float) and not isinstance(step, bool):
            tree["maximum_step"] = step / 2
        elif step is not None:
            tree["maximum_step"] = step
        if betas is not None:
            tree["optimizer"] = {"kind": "adam", "betas": betas}
        return tree

    @model_validator(mode="after")
    def _storable(self) -> Deformable:
        for what, part, usual in (("optimizer", self.optimizer, "adam"), ("model", self.model, "displacement")):
            if self.storage not in part.storages:
                raise ValueError(f"storage {self.storage!r} does not go with {what} {part.kind!r}; use 'float32' or {usual!r}")
        return self

    @model_validator(mode="after")
    def _sweepable(self) -> Deformable:
        if self.iterations_per_sweep == 1:
            return self
        if not self.similarity.separable:
            raise ValueError(
                f"iterations_per_sweep {self.iterations_per_sweep} does not go with similarity {self.similarity.kind!r}, whose "
                "gradient needs sums over all voxels before it: use 1, or mse, lncc or ngf"
            )
        if not self.model.shortens_steps:
            raise ValueError(
                f"iterations_per_sweep {self.iterations_per_sweep} does not go with model {self.model.kind!r}, which does not "
                "shorten steps: use 1, or 'displacement'"
            )
        return self

    @model_validator(mode="after")
    def _filterable(self) -> Deformable:
        if self.smooth_gradient > self.optimizer.widest_filter:
            raise ValueError(
                f"smooth_gradient {self.smooth_gradient:g} does not go with coherence of the optimizer: at most "
                f"{self.optimizer.widest_filter:g} voxels were expected"
            )
        if self.optimizer.compares_filtered and not self.smooth_gradient:
            raise ValueError(
                "smooth_gradient 0 does not go with coherence of the optimizer, which compares the voxels within that filter: "
                "use 1 voxel or more, or coherence 0"
            )
        return self

    @property
    def step(self) -> float:
        """The earlier name of ``maximum_step``, in half voxels."""
        return 2 * self.maximum_step


AnyStage = Annotated[Moments | Search | Rigid | SimilarityStage | Affine | Deformable, Field(discriminator="stage")]


def _class_instead(stage: Any) -> str | None:
    """A sentence where the class of a stage was given in place of a stage."""
    return (
        f"{stage.__name__} is a class; write {stage.__name__}()" if isinstance(stage, type) and issubclass(stage, Stage) else None
    )


class Config(Model):
    """One registration: the stages in order and how intensities are read."""

    stages: tuple[AnyStage, ...] = Field(min_length=1, max_length=100)
    """What is done, in order; each stage goes on from the map of the one before."""
    intensity: Literal["linear", "log"] = "linear"
    """``log`` compresses bright signal, for microscopy whose signal spans decades."""
    percentiles: Annotated[tuple[Percentage, Percentage], TWO] = (0.0, 99.9)
    """Percentiles of all voxels that are mapped to 0 and 1. Lower the second where a few voxels (vessels, beads, hot pixels)
    are far brighter than the structures to match.
    """
    initial_transform: FileAddress | None = None
    """Address of a transform to begin with, fixed to moving points: anything that ``load_transform`` reads."""
    fill: Intensity | None = None
    """Value of the moved image outside of the moving one; None: 0, or the smallest value at the image's corners where that is
    negative (air in a CT).
    """
    fixed_background: BackgroundChoice | None = None
    """Value of stored voxels that stand for nothing, such as the filling of a mosaic: they get weight 0. A number, ``nan``,
    or ``auto``, which looks for one. None: every voxel counts.
    """
    moving_background: BackgroundChoice | None = None
    """The same for the moving image."""
    fixed_mask: FileAddress | None = None
    """Address of weights for the fixed image's voxels, on any grid that overlaps it: 0 takes a voxel out."""
    moving_mask: FileAddress | None = None
    """The same for the moving image."""

    @model_validator(mode="before")
    @classmethod
    def _no_preset(cls, data: Any) -> Any:
        """A preset is a whole configuration, and none has it as a part."""
        if isinstance(data, dict) and "preset" in data:
            name = SHORT.repr(data["preset"]).strip("'")
            raise ValueError(
                f"a preset is no part of a configuration; give --preset {name} in place of --config (config={name!r} in Python), "
                f"or write it out and change it: daskreg register --preset {name} --print-config > FILE"
            )
        return data

    @field_validator("stages", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """``affine`` is short for ``{stage: affine}``, and a single stage for a list of one."""
        stages = [value] if isinstance(value, Stage | str | dict) else value
        if not isinstance(stages, list | tuple):
            return value
        for stage in stages:
            if sentence := _class_instead(stage):
                raise ValueError(sentence)
            if isinstance(stage, dict) and "stage" not in stage and len(stage) == 1:
                raise ValueError(f"a stage was expected with its name beside its parameters: {{stage: {next(iter(stage))}, ...}}")
        return [{"stage": s} if isinstance(s, str) else s for s in stages]

    @field_validator("percentiles", mode="before")
    @classmethod
    def _rising_percentiles(cls, value: Any) -> Any:
        """Whatever is no pair of numbers is refused after this."""
        pair = isinstance(value, list | tuple) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        if pair and not 0 <= value[0] < value[1] <= 100:
            raise ValueError("two percentages were expected, the first below the second, both from 0 to 100")
        return value

    @property
    def in_float32(self) -> Config:
        """The same without mixed storage."""
        return self.without_storage("mixed")

    def without_storage(self, storage: Storage) -> Config:
        """The same with float32 in its place."""
        stored = (isinstance(s, Deformable) and s.storage == storage for s in self.stages)
        stages = (s.model_copy(update={"storage": "float32"}) if k else s for s, k in zip(self.stages, stored, strict=True))
        return self.model_copy(update={"stages": tuple(stages)})

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Config:
        """From a plain tree, as YAML gives it.

        Raises ConfigError naming the key, what it held, and the nearest known name.
        """
        try:
            return cls.model_validate(dict(tree))
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from None

    @classmethod
    def load(cls, path: str | Path) -> Config:
        """From a YAML file. Raises NotFound and ConfigError."""
        tree = read_yaml(path)
        if not isinstance(tree, dict):
            held = "is empty" if tree is None else f"holds {type(tree).__name__}"
            raise ConfigError(f"config {path} {held}; a mapping with the key 'stages' was expected.")
        try:
            return cls.parse(tree)
        except ConfigError as error:
            raise ConfigError(f"config {path}: {error}") from None

    @classmethod
    def of_stages(cls, stages: Sequence[Stage | str] | Stage) -> Config:
        """Default intensities and these stages, or the names of stages. Raises ConfigError for anything else."""
        if isinstance(stages, Stage):
            return cls(stages=(stages,))
        if sentence := _class_instead(stages):
            raise ConfigError(f"{sentence}.")
        if isinstance(stages, str | bytes) or not isinstance(stages, Iterable):
            raise ConfigError(
                f"{SHORT.repr(stages)} is no configuration; give a Config, a list of stages, or the name of a preset."
            )
        for stage in stages:
            if not isinstance(stage, Stage | str):
                sentence = f"{stage!r} is no stage; give an object such as Affine() or Deformable(similarity=LNCC(radius=3))"
                raise ConfigError(f"{_class_instead(stage) or sentence}.")
        return cls.parse({"stages": stages})

    def dump(self) -> str:
        """The YAML text that ``load`` reads back to the same value."""
        text = io.StringIO()
        yaml.safe_dump(self.model_dump(mode="json"), text, sort_keys=False, default_flow_style=None)
        return text.getvalue()
