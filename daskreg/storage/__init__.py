"""Images, transforms, points and runs on disk: the only place that knows Zarr and other file formats."""

from daskreg.storage.format import ImageFormat, PointFormat, TransformFormat
from daskreg.storage.fs.address import is_remote
from daskreg.storage.fs.files import exists
from daskreg.storage.images import open_stack, open_volume, write_image
from daskreg.storage.info import VolumeInfo, describe
from daskreg.storage.registry import register_format
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.runs.run import RunStore
from daskreg.storage.volume import Stack, Volume

__all__ = [
    "CheckpointStore",
    "ImageFormat",
    "PointFormat",
    "RunStore",
    "Stack",
    "TransformFormat",
    "Volume",
    "VolumeInfo",
    "describe",
    "exists",
    "is_remote",
    "open_stack",
    "open_volume",
    "register_format",
    "write_image",
]
