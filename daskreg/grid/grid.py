"""The position of an image's voxels in the world: a frozen value, without arrays of voxels and without I/O."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.arguments import checked_constructor
from daskreg.errors import GridError, UnitsError
from daskreg.grid.region import Region
from daskreg.html import joined, table

Triple = tuple[float, float, float]
Matrix3 = tuple[Triple, Triple, Triple]

IDENTITY: Matrix3 = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

# metres per unit; the names are those of NGFF
UNITS = {
    "angstrom": 1e-10,
    "picometer": 1e-12,
    "nanometer": 1e-9,
    "micrometer": 1e-6,
    "millimeter": 1e-3,
    "centimeter": 1e-2,
    "decimeter": 1e-1,
    "meter": 1.0,
    "kilometer": 1e3,
    "inch": 0.0254,
    "foot": 0.3048,
}
# Greek mu (U+03BC), not the micro sign (U+00B5): ``unit_name`` turns the one into the other, as Unicode's NFKC does
SHORT_UNITS = {"pm": "picometer", "nm": "nanometer", "um": "micrometer", "μm": "micrometer", "μ": "micrometer",
               "mm": "millimeter", "cm": "centimeter", "dm": "decimeter", "m": "meter", "km": "kilometer", "Å": "angstrom",
               "in": "inch"}  # fmt: skip
SMALLEST_VOXEL, LARGEST_VOXEL = 1e-13, 1e7  # metres, or whatever the unit is where none is known
LATTICE = 9  # points along an axis, by which the share of a grid in another one is found
LARGEST_RATIO = 1e6  # of the voxel sizes of two axes
FARTHEST_ORIGIN = 1e11  # voxels: beyond it float64 places voxels by steps of more than 2e-5 of one
OPENED_ARRAY = "daskreg.open_volume(array, spacing=..., unit=...)"  # which says what an array in memory does not
TRUE_SIZE = f"give the true voxel size with '::spacing=ZxYxX' behind the path (of an array in Python: {OPENED_ARRAY})"
UNIT_COLUMN = 0.01  # by which the length of a direction's column may differ from 1: headers state few digits


def unit_name(unit: str | None) -> str | None:
    """The full NGFF name of a unit of length, or None when there is none.

    Abbreviations, the plural and British spelling are understood. Raises UnitsError for a word that is no unit of length.
    """
    if unit is None or (isinstance(unit, str) and unit in ("", "pixel", "voxel")):
        return None
    word = unicodedata.normalize("NFKC", str(unit)).strip()
    full = re.sub(r"metre$", "meter", word.lower().removesuffix("s"))
    name = SHORT_UNITS.get(word) or ("micrometer" if full == "micron" else full)  # case matters to short names: Mm, mm
    if name not in UNITS:
        raise UnitsError(f"unit {unit!r} is not a unit of length known here; use one of {', '.join(UNITS)}.")
    return name


@checked_constructor
@dataclass(frozen=True)
class Grid:
    """The voxels of an image in the world: ``world = origin + direction @ (spacing * index)``.

    shape: voxels (z, y, x);  spacing: world units a voxel (z, y, x);  origin: centre of voxel 0, LPS, components z, y, x;
    direction: ``direction[i][j]`` is world component i of index axis j, both in the order z, y, x, unit columns;
    unit: NGFF name of the unit of length, None when unknown;  oriented: whether the store states its axes' orientation in LPS.

    Raises GridError for a shape, spacing or direction that defines no grid.
    """

    shape: tuple[int, int, int]
    spacing: Triple = (1.0, 1.0, 1.0)
    origin: Triple = (0.0, 0.0, 0.0)
    direction: Matrix3 = IDENTITY
    unit: str | None = None
    oriented: bool = False

    def __post_init__(self) -> None:
        """Convert to plain Python numbers, and check them."""
        try:
            object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
            object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))
            object.__setattr__(self, "origin", tuple(float(s) for s in self.origin))
            object.__setattr__(self, "direction", tuple(tuple(float(v) for v in row) for row in self.direction))
        except (TypeError, ValueError, OverflowError) as error:
            raise GridError(f"a grid takes three numbers (z, y, x) for shape, spacing and origin, and 3 x 3: {error}.") from None
        if len(self.origin) != 3:
            raise GridError(f"origin is {self.origin}; three numbers (z, y, x) were expected.")
        object.__setattr__(self, "unit", unit_name(self.unit))
        _check_shape(self.shape)
        _check_spacing(self.spacing, self.unit)
        _check_axes(self.origin, np.asarray(self.direction), self.spacing)

    @classmethod
    def from_matrix(cls, shape: tuple[int, ...], matrix: ArrayLike, unit: str | None = None, *, oriented: bool = True) -> Grid:
        """The grid whose index-to-world matrix (4, 4) is ``matrix``, rows and columns z, y, x, 1."""
        m = np.asarray(matrix, float)
        spacing = np.linalg.norm(m[:3, :3], axis=0)
        if not np.isfinite(m).all() or (spacing == 0).any():
            raise GridError(f"the header's matrix {np.round(m, 4).tolist()} defines no grid; repair the image's header.")
        return cls(tuple(shape), tuple(spacing), tuple(m[:3, 3]), _rows(m[:3, :3] / spacing), unit, oriented)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Grid({self.summary()}, origin {joined(self.origin, ', ')})"

    def _repr_html_(self) -> str:
        oriented = "" if self.oriented else " (not stated: taken as LPS)"
        direction = "; ".join(joined(row, " ") for row in self.direction)
        rows = [("shape", joined(self.shape)), ("spacing", f"{joined(self.spacing)} {self.unit or '(no unit)'}"),
                ("origin", joined(self.origin, ", ")), ("direction", direction + oriented)]  # fmt: skip
        return table("Grid (z, y, x)", rows)

    def summary(self) -> str:
        """Shape and spacing in one line."""
        return f"{joined(self.shape)} at {joined(self.spacing)} {self.unit or '(no unit)'}"

    @property
    def index_to_world(self) -> NDArray[np.float64]:
        """(4, 4), order z, y, x, 1."""
        m = np.eye(4)
        m[:3, :3] = np.asarray(self.direction) * np.asarray(self.spacing)
        m[:3, 3] = self.origin
        return m

    @property
    def world_to_index(self) -> NDArray[np.float64]:
        """(4, 4), order z, y, x, 1."""
        return np.asarray(np.linalg.inv(self.index_to_world), np.float64)

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def edge_mm(self) -> float | None:
        """Edge in millimetres of a cube as large as a voxel; None where no unit of length is known."""
        if self.unit is None:
            return None
        return float(math.prod(self.spacing) ** (1 / 3) * (UNITS[self.unit] / UNITS["millimeter"]))

    @property
    def center(self) -> NDArray[np.float64]:
        """World position of the middle of the grid, (3,)."""
        return self.to_world((np.asarray(self.shape) - 1) / 2)

    @property
    def region(self) -> Region:
        """The whole grid as a box of voxels."""
        return Region((0, 0, 0), self.shape)

    @property
    def extent(self) -> NDArray[np.float64]:
        """Edge lengths in world units along the index axes, (3,)."""
        return np.asarray([n * s for n, s in zip(self.shape, self.spacing, strict=True)], np.float64)

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """World positions of voxel indices, (..., 3) z, y, x."""
        m = self.index_to_world
        return np.asarray(np.asarray(index, float) @ m[:3, :3].T + m[:3, 3])

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices of world positions, (..., 3) z, y, x."""
        m = self.world_to_index
        return np.asarray(np.asarray(world, float) @ m[:3, :3].T + m[:3, 3])

    def share_within(self, other: Grid) -> float:
        """The share of this grid, 0 to 1, that lies within the voxels of another one in the same unit: by a lattice of points."""
        steps = (np.arange(LATTICE) + 0.5) / LATTICE
        points = np.stack(np.meshgrid(*(steps * n - 0.5 for n in self.shape), indexing="ij"), axis=-1).reshape(-1, 3)
        voxels = other.to_index(points @ self.index_to_world[:3, :3].T + self.index_to_world[:3, 3])
        return float(((voxels >= -0.5) & (voxels <= np.asarray(other.shape) - 0.5)).all(axis=1).mean())

    def coarsen(self, factors: tuple[int, int, int]) -> Grid:
        """The grid whose voxel i covers fine voxels ``f i .. f i + f - 1`` (the last one may reach past the edge)."""
        f = np.asarray(factors)
        z, y, x = (-(-n // k) for n, k in zip(self.shape, factors, strict=True))
        return replace(
            self,
            shape=(z, y, x),
            spacing=tuple(np.asarray(self.spacing) * f),
            origin=tuple(self.to_world((f - 1) / 2)),
        )

    def crop(self, region: Region) -> Grid:
        """The part of this grid inside ``region``."""
        return replace(self, shape=region.shape, origin=tuple(self.to_world(region.start)))

    def permute(self, order: tuple[int, int, int]) -> Grid:
        """The same voxels with axis ``order[0]`` first, as ``transpose`` does to their array."""
        direction = np.asarray(self.direction)[:, list(order)]
        shape, spacing = ([values[a] for a in order] for values in (self.shape, self.spacing))
        return replace(self, shape=tuple(shape), spacing=tuple(spacing), direction=_rows(direction))  # type: ignore[arg-type]

    def to_unit(self, unit: str | None) -> Grid:
        """The same grid in another unit of length.

        Raises UnitsError when exactly one of the two units is unknown.
        """
        name = unit_name(unit)
        if name == self.unit:
            return self
        if name is None or self.unit is None:
            raise UnitsError(
                f"one image or transform is in {self.unit or name}, the other states no unit of length; "
                f"say which with '::unit=NAME' behind its path (of an array in Python: {OPENED_ARRAY}; "
                "of an xarray.DataArray: the attribute units of its coordinates)."
            )
        k = UNITS[self.unit] / UNITS[name]
        return replace(self, spacing=_scaled(self.spacing, k), origin=_scaled(self.origin, k), unit=name)

    def corners(self) -> NDArray[np.float64]:
        """World positions of the eight corner voxels, (8, 3)."""
        far = np.asarray(self.shape) - 1
        return self.to_world([[far[a] * ((k >> a) & 1) for a in range(3)] for k in range(8)])

    def __dask_tokenize__(self) -> object:
        """Equal grids have equal tokens."""
        return ("daskreg.Grid", self.shape, self.spacing, self.origin, self.direction, self.unit)


def _scaled(values: Triple, k: float) -> Triple:
    return (values[0] * k, values[1] * k, values[2] * k)


def _rows(matrix: NDArray[np.float64]) -> Matrix3:
    return tuple(tuple(float(v) for v in row) for row in matrix)  # type: ignore[return-value]


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise GridError(f"shape {shape} is not three positive numbers of voxels (z, y, x).")


def _check_spacing(spacing: Triple, unit: str | None) -> None:
    if len(spacing) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing):
        raise GridError(f"spacing {spacing} (z, y, x) must be three positive numbers; {TRUE_SIZE}.")
    metres = UNITS[unit] if unit else 1.0
    if (
        min(spacing) * metres < SMALLEST_VOXEL
        or max(spacing) * metres > LARGEST_VOXEL
        or max(spacing) > LARGEST_RATIO * min(spacing)
    ):
        raise GridError(
            f"spacing {spacing} {unit or '(no unit)'} (z, y, x) is no size of voxels; repair the header, or {TRUE_SIZE}."
        )


def _check_axes(origin: Triple, direction: NDArray[np.float64], spacing: Triple) -> None:
    if not np.isfinite(origin).all() or not np.isfinite(direction).all():
        raise GridError(f"origin {origin} or direction {direction.tolist()} is not finite; repair the image's header.")
    if direction.shape != (3, 3) or abs(np.linalg.det(direction)) < 1e-6:
        raise GridError(
            f"direction {np.round(direction, 4).tolist()} is singular: its axes do not span space; repair the header."
        )
    if (abs(np.linalg.norm(direction, axis=0) - 1) > UNIT_COLUMN).any():
        raise GridError(
            f"direction {np.round(direction, 4).tolist()} has columns of other lengths than 1, so that it says another "
            "voxel size than the spacing; repair the header."
        )
    if max(abs(v) for v in origin) > FARTHEST_ORIGIN * min(spacing):
        raise GridError(
            f"origin {origin} is more than {FARTHEST_ORIGIN:.0e} voxels of {min(spacing):g} from 0, where no voxel can be told "
            "from the next; repair the header."
        )
