"""A transform as a value: applied to images and points, chained, inverted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from daskreg.arguments import checked_arguments, checked_constructor
from daskreg.config import DeviceName
from daskreg.deferred import DeferredModule
from daskreg.deprecation import renamed_arguments
from daskreg.errors import ArrayError, ConfigError, GridError, UnitsError, require_known, require_number
from daskreg.grid import OPENED_ARRAY, UNITS, Grid, Region, unit_name
from daskreg.html import joined, table
from daskreg.lazy.blocks import block_of, by_block, compute_blocks
from daskreg.lazy.device import resolve_device
from daskreg.lazy.resample import Interpolation, resampled, warn_without_overlap
from daskreg.storage import Stack, Volume, open_stack
from daskreg.storage.fill import Fill
from daskreg.storage.images import ImageSource, grid_of_array, is_bare, open_on
from daskreg.transforms.chain import merge_affines, sample_chain
from daskreg.transforms.inverse import DisplacementBounds, InverseField, invert_links
from daskreg.transforms.jacobian import BlockStatistics, JacobianStatistics, jacobian_determinant
from daskreg.transforms.link import Link, real_array
from daskreg.transforms.point_inverse import invert_points

if TYPE_CHECKING:
    import dask.array as da
else:
    da = DeferredModule("dask.array")

log = logging.getLogger("daskreg")
LARGE = 192  # voxels an axis of a block of determinants: their rim costs a chunk on every side
Space = Literal["world", "index"]
Points = NDArray[np.float64]


@checked_constructor
@dataclass(frozen=True, eq=False)
class Transform:
    """Maps points of the fixed image to points of the moving image: ``phi = link_n o ... o link_1``, each ``W(x + d(x))``.

    links: in the order in which they are applied to a point, all in the world unit ``unit`` (None: unknown; LPS, z, y, x);
    fixed, moving: grids of the two images, in any unit; None: unknown.
    """

    links: tuple[Link, ...]
    unit: str | None = None
    fixed: Grid | None = None
    moving: Grid | None = None

    @classmethod
    @checked_arguments()
    def of(
        cls,
        affine: ArrayLike | None = None,
        grid: Grid | None = None,
        displacement: Any = None,
        moving: Grid | None = None,
        unit: str | None = None,
    ) -> Transform:
        """``x -> W (x + d(x))``: affine, W, (4, 4), world, z, y, x, 1;  displacement, d, (3, Z, Y, X) on ``grid``, world units.

        unit: of an affine that has no grid. Raises ArrayError when these do not fit each other.
        """
        if grid is not None and not isinstance(grid, Grid):
            raise GridError(f"grid is {grid!r}; a daskreg.Grid was expected.")
        matrix = np.eye(4) if affine is None else real_array(affine, "an affine")
        return cls((Link(matrix, grid, displacement),), unit_name(unit) if grid is None else grid.unit, grid, moving)

    def __repr__(self) -> str:
        return f"Transform({', then '.join(self._parts()) or 'identity'}, {self.unit or 'no unit'})"

    def _repr_html_(self) -> str:
        rows = [(f"part {k}", text) for k, text in enumerate(self._parts(), 1)]
        ends = [(name, "not known" if grid is None else grid.summary()) for name, grid in self.grids.items()]
        return table("Transform of fixed to moving points", [*rows, *ends, ("unit", self.unit or "not known")])

    def _parts(self) -> list[str]:
        """Each link, in the order in which it is applied."""
        shapes = [None if link.displacement is None else joined(link.displacement_grid.shape) for link in self.links]
        return ["affine" if shape is None else f"displacement {shape} and affine" for shape in shapes]

    @property
    def grid(self) -> Grid:
        """The fixed image's. Raises GridError where the transform does not know one."""
        if self.fixed is None:
            raise GridError("the transform names no fixed grid, a bare affine has none; say where to: like=GRID (--like IMAGE).")
        return self.fixed

    @property
    def grids(self) -> dict[str, Grid | None]:
        """Of the fixed and the moving image, as far as they are known."""
        return {"fixed": self.fixed, "moving": self.moving}

    @property
    def affine(self) -> Points:
        """The affine parts multiplied, (4, 4): all of the transform where it has no displacement."""
        total = np.eye(4)
        for link in self.links:
            total = link.affine @ total
        return total

    @property
    def is_affine(self) -> bool:
        """Whether there is no displacement."""
        return all(link.displacement is None for link in self.links)

    # --- images ---------------------------------------------------------------------------------------------------------------

    @checked_arguments()
    def apply(
        self,
        image: ImageSource | Volume | Stack,
        *,
        like: ImageSource | Volume | Grid | None = None,
        interpolation: Interpolation = "linear",
        grid: Grid | None = None,
        device: DeviceName = "auto",
        fill: Fill = None,
    ) -> da.Array:
        """``image(phi(x))`` as a Dask array (.., Z, Y, X) in the image's own type; nothing is read yet.

        A block reads only the voxels it needs, and a chain is interpolated once.

        image: a Volume, an address, or an array (.., Z, Y, X) on ``grid`` (default: the moving image's); like: the output grid,
        by default the fixed one, or the image's where the transform knows none; interpolation: linear, nearest, cubic
        (convolution, Keys 1981), label (the label with the largest trilinear weight); device: cpu, cuda, or auto (a GPU where
        this process, or every worker of the current Dask client, has one); fill: value outside of the image: a number, "nan",
        or None: 0, or the smallest value at the corners of the (first) image where that is negative, as air is in a CT.
        Raises InputError in all its forms.
        """
        stack = image if isinstance(image, Stack) else open_stack(image, grid=self._grid_of(image, grid))
        target = self.output_grid(stack, like)
        warn_without_overlap(self.links, self.unit, target, stack)
        # "cuda" is taken at its word: the array may be computed where there is a GPU, even if there is none here
        kind = resolve_device(device) if device == "auto" else device
        return resampled(stack, target, self.links, self.unit, interpolation, device=kind, fill=fill)

    def target(self, like: ImageSource | Volume | Grid | None = None) -> Grid:
        """The output grid: ``like`` itself, the grid of an image, or the fixed grid by default."""
        if like is None or isinstance(like, Grid):
            return self.grid if like is None else like
        if is_bare(like) or isinstance(like, Volume):
            return open_on(like, self.fixed, "fixed", self.moving).grid
        return open_stack(like, grid=grid_of_array(like, self.fixed, "fixed", self.moving)).grid

    def output_grid(self, image: Stack, like: ImageSource | Volume | Grid | None = None) -> Grid:
        """``target``, or the image's own grid, with a warning, where the transform knows none and none is given."""
        if like is not None or self.fixed is not None:
            return self.target(like)
        log.warning(
            "the transform names no fixed grid; the output is on that of %s, and --like (like=) chooses another", image.name
        )
        return image.grid

    def _grid_of(self, image: Any, grid: Grid | None) -> Grid | None:
        """The grid of an array: the one given, or the moving grid where the shapes agree. Raises GridError."""
        how = f"with grid=, or {OPENED_ARRAY}"
        return grid_of_array(image, self.moving, "moving", self.fixed, how) if grid is None else grid

    @checked_arguments()
    def jacobian(self, *, like: ImageSource | Volume | Grid | None = None, whole: bool = True) -> da.Array:
        """``det(D phi)`` on the fixed grid or that of ``like``, a Dask array (Z, Y, X) float32; at most 0 where space folds.

        Central differences, one-sided at the grid's faces; chunks overlap by one voxel, so that they are exact at their faces.
        whole: whether to include the determinants of the affine maps.
        """
        grid = self.target(like).to_unit(self.unit)
        compute = Determinant(self.links, grid, whole)
        return by_block(compute, grid.shape, np.dtype(np.float32), block_of(grid.shape))

    def determinant(self, box: Region | None = None) -> NDArray[np.float32]:
        """The displacement's part of ``jacobian`` in a box of the fixed grid (all of it by default), computed, (Z, Y, X)."""
        grid = self.grid.to_unit(self.unit)
        return jacobian_determinant(self.links, grid, box or grid.region, whole=False)

    @checked_arguments()
    def jacobian_statistics(self) -> JacobianStatistics:
        """Folds and the range of the displacement's determinant over the whole fixed grid, block by block."""
        if self.is_affine:
            return JacobianStatistics()
        return JacobianStatistics.merge([BlockStatistics.of(self.determinant(box)) for box in self.grid.region.split(LARGE)])

    def field(self, box: Region, components: Sequence[int] = (0, 1, 2)) -> NDArray[np.float32]:
        """``phi(x) - x`` at the voxels of a box of the fixed grid, (3, Z, Y, X) in the unit of the transform; some components."""
        grid = self.grid.to_unit(self.unit)
        at = sample_chain(self.links, grid, box)
        extra = at.matrix - grid.index_to_world
        z, y, x = (np.arange(a, b, dtype=float) for a, b in zip(box.start, box.stop, strict=True))
        out = np.empty((len(components), *box.shape), np.float32)
        for n, c in enumerate(components):  # summed in float64, for origins can be far
            total = (extra[c, 0] * z)[:, None, None] + (extra[c, 1] * y)[:, None] + (extra[c, 2] * x + extra[c, 3])
            for k in np.flatnonzero(at.linear[c]) if at.e is not None else ():
                total = total + at.linear[c, k] * at.e[k]  # type: ignore[index]  # only where there is an e
            out[n] = total
        return out

    # --- points ---------------------------------------------------------------------------------------------------------------

    @checked_arguments()
    def fixed_to_moving_points(self, points: ArrayLike, space: Space = "world") -> Points:
        """Where points (.., 3), z, y, x, of the fixed image lie in the moving image, (.., 3).

        space: world (LPS, in the transform's unit) or index (voxels of the fixed image in, of the moving image out).
        Raises ArrayError unless the last axis has three components, ConfigError, and GridError for an index without a grid.
        """
        p = self._from(points, space, self.fixed)
        for link in self.links:
            p = link.transform_points(p)
        return self._to(p, space, self.moving)

    points = fixed_to_moving_points

    @checked_arguments()
    def moving_to_fixed_points(self, points: ArrayLike, space: Space = "world") -> Points:
        """Where points (.., 3), z, y, x, of the moving image lie in the fixed image, by fixed point, within 1e-4 voxel.

        Points without a source (in folds) are returned as near as the iteration gets: see ``sources``.
        """
        return self.sources(points, space)[0]

    @checked_arguments()
    def sources(self, points: ArrayLike, space: Space = "world") -> tuple[Points, Points]:
        """``moving_to_fixed_points``, and a bound on each point's distance from the image of its source, (..,) world units."""
        y = self._from(points, space, self.moving)
        flat, left = y.reshape(-1, 3), np.zeros(y.size // 3)
        for link in reversed(self.links):
            flat, more = invert_points(link, flat)
            left = left + more
        return self._to(flat.reshape(y.shape), space, self.fixed), left.reshape(y.shape[:-1])

    def _from(self, points: ArrayLike, space: Space, grid: Grid | None) -> Points:
        require_known("space", space, ("world", "index"))
        p = real_array(points, "points")
        if p.shape[-1:] != (3,):
            raise ArrayError(f"points of shape {p.shape} were given; (.., 3) in the order z, y, x was expected.")
        return p if space == "world" else self._known(grid).to_world(p)

    def _to(self, points: Points, space: Space, grid: Grid | None) -> Points:
        return points if space == "world" else self._known(grid).to_index(points)

    def _known(self, grid: Grid | None) -> Grid:
        if grid is None:
            raise GridError("space 'index' counts voxels of an image whose grid the transform does not know; use world points.")
        return grid.to_unit(self.unit)

    # --- other transforms -----------------------------------------------------------------------------------------------------

    @checked_arguments()
    def then(self, other: Transform) -> Transform:
        """The chain of this transform and then ``other``: from this one's fixed to the other's moving image.

        Raises UnitsError when only one of the two states its unit.
        """
        same = other.to_unit(self.unit)
        return Transform(merge_affines([*self.links, *same.links]), self.unit, self.fixed, same.moving)

    @checked_arguments()
    def to_unit(self, unit: str | None) -> Transform:
        """The same transform in another unit of length. Raises UnitsError when one of the two is unknown."""
        name = unit_name(unit)
        if name == self.unit:
            return self
        if name is None or self.unit is None:
            raise UnitsError(
                f"one transform is in {self.unit or name}, the other states no unit of length; say it with '::unit=NAME' behind "
                "its path, as in daskreg.load_transform('RUN.zarr::unit=mm'), or with unit= of daskreg.Transform.of."
            )
        k = UNITS[self.unit] / UNITS[name]
        return replace(self, links=tuple(link.to_unit(name, k) for link in self.links), unit=name)

    @renamed_arguments(finer="upsampling")
    @checked_arguments()
    def inverse(self, upsampling: int = 1) -> Transform:
        """The transform from the moving to the fixed image. Displacements are read once now, and inverted where it is read.

        upsampling: voxels of the inverse per voxel of the displacement, along each axis; between them it is trilinear.
        ``daskreg invert`` writes it out, with a certificate of its error. Raises ConfigError for a singular affine.
        """
        require_number("upsampling", upsampling, 1, 16, whole=True)
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-12:
            raise ConfigError("the affine part is singular: the transform flattens space and has no inverse.")
        fields = [
            None if link.displacement is None else InverseField(link, bounds_of_blocks(link), upsampling) for link in self.links
        ]
        return Transform(invert_links(self.links, fields), self.unit, self.moving, self.fixed)


class Determinant:
    """Computes any box of a map of Jacobian determinants."""

    def __init__(self, links: Sequence[Link], grid: Grid, whole: bool) -> None:
        self.links, self.grid, self.whole = tuple(links), grid, whole

    def __call__(self, box: Region) -> NDArray[np.float32]:
        """The determinants of a box, (Z, Y, X)."""
        return jacobian_determinant(self.links, self.grid, box, whole=self.whole)


def jacobian_statistics(determinant: Callable[[Region], NDArray[np.float32]], region: Region, edge: int) -> JacobianStatistics:
    """Folds and the range of a map of determinants that is computed or read box by box, a task a block."""
    return JacobianStatistics.merge(compute_blocks(partial(_block_statistics, determinant), region, edge))


def _block_statistics(determinant: Callable[[Region], NDArray[np.float32]], box: Region) -> BlockStatistics:
    return BlockStatistics.of(determinant(box))


def bounds_of_blocks(link: Link, edge: int = LARGE) -> list[DisplacementBounds]:
    """Bounds of every block of a displacement, a task a block."""
    return compute_blocks(partial(DisplacementBounds.of, link), link.displacement_grid.region, edge)
