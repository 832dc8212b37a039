"""What daskreg asks of a file format: the classes that a format derives from.

``daskreg.storage.registry`` lists the formats; ``docs/extend/format.md`` adds one step by step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from numpy.typing import NDArray

from daskreg.grid import Grid
from daskreg.storage.axes import Axis
from daskreg.storage.fs.address import Address, is_remote
from daskreg.storage.image_record import ImageRecord
from daskreg.storage.point_file import PointFile
from daskreg.storage.transform_record import StoredLink, TransformRecord

if TYPE_CHECKING:
    import dask.array as da

    Array = NDArray[Any] | da.Array
else:
    Array = Any  # Dask is not imported for its name


class Format(ABC):
    """One file format, without state: one instance serves every file.

    name: as in messages;  endings: of file names, lower case with their dot, the one to recommend first;
    writes: whether it can be written;  library: module that writing needs, where it comes with an extra of daskreg;
    remote: whether it is read from URLs too, and written to them; what is not is written to a local file, which is then copied.
    """

    name: ClassVar[str]
    endings: ClassVar[tuple[str, ...]]
    writes: ClassVar[bool] = True
    library: ClassVar[str | None] = None
    remote: ClassVar[bool] = True

    def reads_at(self, path: str) -> bool:
        """Whether a file at this path or URL can be read where it is."""
        return self.remote or not is_remote(path)

    def sniff(self, path: str) -> bool:
        """Whether the content at an existing path is of this format; decides where the ending does not. Never raises."""
        return False


class ImageFormat(Format):
    """A format of images.

    streams_planes: a written file takes planes (z) in their order, as they are computed, and is slow to read in boxes;
    leading_axes: holds time and channel axes;  directions: states the direction of the axes, without which an image along other
    axes than those of the world is refused;  units: states the unit of length, without which grids to write are in millimetres;
    single_file: is one file (or a few), not a Zarr store;
    linkable: an image that an OME-NGFF scene can link.
    """

    streams_planes: ClassVar[bool] = False
    leading_axes: ClassVar[bool] = False
    directions: ClassVar[bool] = True
    units: ClassVar[bool] = True
    single_file: ClassVar[bool] = True
    linkable: ClassVar[bool] = False

    def holds(self, axes: tuple[Axis, ...]) -> bool:
        """Whether images along these leading axes go into one file."""
        return self.leading_axes or not axes

    @abstractmethod
    def open(self, address: Address) -> ImageRecord:
        """The metadata of an image and its voxels, lazily. Raises NotFound, Unreadable, and ConfigError for unusable keys."""

    def write(self, path: str, data: Array, grid: Grid, *, labels: bool = False, axes: tuple[Axis, ...] = ()) -> None:
        """Write voxels (.., Z, Y, X) of real numbers on ``grid`` to a new path; the caller renames it when it is complete.

        labels: coarser levels take the most frequent label, not the mean;  axes: the leading axes.
        Raises OutputError for what the format cannot hold; other exceptions are translated by the caller.
        """
        raise NotImplementedError(f"{self.name} is read only")


class TransformFormat(Format):
    """A format of transforms from fixed to moving points.

    holds: what can be written: one affine map, one displacement field, or a chain of both;
    unit: of the world in a file, None where it keeps the transform's own;
    in_blocks: written block by block by several processes (``TransformStore``), not by ``write``;
    is_run: holds the whole record of a registration.
    """

    holds: ClassVar[Literal["affine", "field", "chain"]] = "chain"
    unit: ClassVar[str | None] = None
    in_blocks: ClassVar[bool] = False
    is_run: ClassVar[bool] = False

    @abstractmethod
    def open(self, path: str) -> TransformRecord:
        """The transform in a file, its displacements lazily. Raises NotFound, Unreadable, IncompleteRun."""

    def write(self, path: str, links: Sequence[StoredLink]) -> None:
        """Write links, in the order of application and in ``unit``, to a new path; the caller renames it when it is complete.

        One link without a field where ``holds`` is affine, one with a field and the identity where it is field.
        """
        raise NotImplementedError(f"{self.name} is not written this way")


class PointFormat(Format):
    """A format of points. meshes: it holds cells and data beside the points, and only files of meshes can be written to it."""

    meshes: ClassVar[bool] = False

    @abstractmethod
    def open(self, path: str, order: str | None) -> PointFile:
        """The points in a file. order: of the components where the file does not name them, xyz or zyx, None: the format's own.

        Raises Unreadable, naming the row.
        """

    @abstractmethod
    def write(self, path: str, file: PointFile) -> None:
        """Write points, and what else was in their file, to a new path; the caller renames it when it is complete."""


def first_bytes(path: str, count: int) -> bytes:
    """The start of a local file, empty where there is none to read: for ``sniff``."""
    if is_remote(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError:
        return b""
