"""Images, runs and transforms on disk: the only place that knows Zarr and NIfTI."""

from daskreg.storage.formats.itk_linear import read_affine, write_affine, write_displacement_nifti
from daskreg.storage.fs.address import is_remote
from daskreg.storage.fs.atomic import exists
from daskreg.storage.images import Stack, Volume, open_stack, open_volume
from daskreg.storage.info import VolumeInfo, describe
from daskreg.storage.runs.checkpoint import CheckpointStore
from daskreg.storage.runs.run import RunStore
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
