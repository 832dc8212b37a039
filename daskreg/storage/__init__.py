"""Images, transforms, points and runs on disk: the only place that knows Zarr and other file formats."""

from daskreg.storage.fs.address import is_remote
from daskreg.storage.fs.atomic import exists
from daskreg.storage.images import Stack, Volume, open_stack, open_volume, write_image
from daskreg.storage.info import VolumeInfo, describe
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.runs.run import RunStore

__all__ = [
    "CheckpointStore",
    "RunStore",
    "Stack",
    "Volume",
    "VolumeInfo",
    "describe",
    "exists",
    "is_remote",
    "open_stack",
    "open_volume",
    "write_image",
]
