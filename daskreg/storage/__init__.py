"""Images, runs and transforms on disk: the only place that knows Zarr and NIfTI."""

from daskreg.storage.address import is_remote
from daskreg.storage.atomic import exists
from daskreg.storage.checkpoint import CheckpointStore
from daskreg.storage.images import Stack, Volume, open_stack, open_volume
from daskreg.storage.info import VolumeInfo, describe
from daskreg.storage.itk import read_affine, write_affine, write_displacement_nifti
from daskreg.storage.run import RunStore
from daskreg.storage.write import write_image

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
    "read_affine",
    "write_affine",
    "write_displacement_nifti",
    "write_image",
]
