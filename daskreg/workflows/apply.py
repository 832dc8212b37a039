"""``daskreg apply``: another image through a transform, block by block, however large."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from daskreg.errors import require_known
from daskreg.grid import Grid
from daskreg.lazy.load import load_transform, place_of
from daskreg.lazy.resample import Device, Interpolation, resampled, warn_apart
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, Volume, open_stack, open_volume, write_image
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.atomic import require_distinct
from daskreg.storage.images import ImageSource
from daskreg.storage.registry import image_formats

__all__ = ["Interpolation", "apply", "load_transform"]


def apply(
    run: str | Path | RunStore | Transform,
    image: ImageSource | Volume,
    output: str | Path | None = None,
    *,
    interpolation: Interpolation = "linear",
    like: ImageSource | Volume | Grid | None = None,
    overwrite: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "cpu",
) -> Volume:
    """``moved(x) = image(phi(x))`` on the fixed grid or on that of ``like``, in the image's own type, 0 outside.

    image: an address, an array (Z, Y, X) or a Volume, of any grid: only world coordinates matter; all channels of an address
    that chooses none;  output: a file of any format that is written (None: nothing is computed yet, one channel), of
    which the first channel and time is returned;
    interpolation: linear, nearest, cubic, or label (the one with the most weight around);  device: cpu, cuda, or auto (a GPU
    where this process, or every worker of the Dask client in hand, has one).
    Raises InputError and OutputError in all their forms.
    """
    kind = settled_device(device)
    if output is not None:
        require_distinct(output, place_of(run), image, like)
    transform = run if isinstance(run, Transform) else load_transform(run)
    stack = open_stack(image) if output is not None and isinstance(image, str | Path) else open_stack(open_volume(image))
    grid = transform.target(like)
    warn_apart(transform.links, transform.unit, grid, stack)
    planes = output is not None and image_formats.to_write(parse_address(output).path).streams_planes
    moved = resampled(stack, grid, transform.links, transform.unit, interpolation, planes=planes, device=kind)
    if output is None:
        return Volume(moved, grid, f"{stack.name}, moved")
    write_image(output, moved, grid, labels=interpolation in ("nearest", "label"), overwrite=overwrite, axes=stack.axes)
    if not stack.axes:
        return open_volume(output)
    written = open_stack(output)
    return Volume(written.data[(0,) * len(stack.axes)], written.grid, written.name)


def settled_device(wanted: str) -> Device:
    """Where kernels run, as ``register`` settles it. Raises ConfigError for another word, InputError where no GPU is."""
    require_known("device", wanted, ("auto", "cpu", "cuda"))
    if wanted == "cpu":
        return "cpu"
    from daskreg.cluster import device_of, existing  # a second that a processor need not wait for

    with existing() as client:
        return device_of(client, wanted)
