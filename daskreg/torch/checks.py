"""What functions accept; one sentence says what was found and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from daskreg.errors import DaskregError

KINDS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DEVICES = "cpu", "cuda"
Item = TypeVar("Item")


def five_dimensional(tensor: Tensor, name: str = "image") -> None:
    """A tensor (B, C, Z, Y, X) with voxels."""
    if tensor.ndim != 5:
        raise DaskregError(f"the {name} has the shape {tuple(tensor.shape)}; (B, C, Z, Y, X) was expected.")


def many(tensor: Tensor) -> None:
    """A tensor of at least (B, C, X): losses without windows take any number of axes."""
    if tensor.ndim < 3:
        raise DaskregError(f"the image has the shape {tuple(tensor.shape)}; (B, C, ...) was expected.")


def some(tensor: Tensor) -> None:
    """A tensor with elements: a mean over none is no number."""
    if tensor.numel() == 0:
        raise DaskregError(f"a tensor has the shape {tuple(tensor.shape)}; at least one element was expected.")


def same_shape(moved: Tensor, fixed: Tensor) -> None:
    """Two images on one grid."""
    if moved.shape != fixed.shape:
        raise DaskregError(
            f"the moved image has the shape {tuple(moved.shape)}, and the fixed {tuple(fixed.shape)}; one was expected."
        )


def displacement(image: Tensor, field: Tensor) -> None:
    """An image and a displacement (B, 3, Z, Y, X) of the same batch."""
    five_dimensional(image)
    if field.ndim != 5 or field.shape[1] != 3 or field.shape[0] != image.shape[0]:
        raise DaskregError(
            f"the displacement has the shape {tuple(field.shape)}; ({image.shape[0]}, 3, Z, Y, X) was expected, as of the image."
        )


def affine_map(image: Tensor, affine: Tensor) -> Tensor:
    """An affine map (B, 3, 4), for every batch element."""
    if affine.ndim != 3 or affine.shape[1:] != (3, 4) or affine.shape[0] not in (1, image.shape[0]):
        raise DaskregError(f"the affine map has the shape {tuple(affine.shape)}; ({image.shape[0]}, 3, 4) was expected.")
    return affine.expand(image.shape[0], 3, 4)


def computed(*tensors: Tensor) -> list[Tensor]:
    """Tensors of one device in the type that is computed in: float64 where any is, else float32."""
    device = tensors[0].device
    if device.type in DEVICES and not [t for t in tensors if t.dtype != torch.float32 or t.device != device]:
        return list(tensors)
    for tensor in tensors:
        if tensor.dtype not in KINDS:
            raise DaskregError(f"a tensor is {tensor.dtype}; float16, bfloat16, float32 or float64 was expected.")
        if tensor.device.type not in DEVICES:
            raise DaskregError(f"a tensor is on the device {tensor.device}; cpu or cuda was expected.")
        if tensor.device != tensors[0].device:
            raise DaskregError(f"tensors are on the devices {tensors[0].device} and {tensor.device}; one was expected.")
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    if double and tensors[0].is_cuda:
        raise DaskregError("a CUDA tensor is float64; float32, float16 or bfloat16 was expected (float64 on a CPU).")
    kind = torch.float64 if double else torch.float32
    return [tensor.to(kind) for tensor in tensors]


def known(tensors: Iterable[Tensor]) -> None:
    """Tensors of types that kernels are compiled for."""
    for tensor in tensors:
        if tensor.dtype not in (torch.float32, torch.int64) and (tensor.is_cuda or tensor.dtype != torch.float64):
            device = "CUDA" if tensor.is_cuda else "CPU"
            raise DaskregError(
                f"an operator was given a {device} tensor of {tensor.dtype}; float32 was expected (float64 on a CPU)."
            )


def needs_gradient(tensor: Tensor) -> bool:
    """Whether a derivative with respect to a tensor may be asked for."""
    return torch.is_grad_enabled() and tensor.requires_grad


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """A word that is known."""
    if value not in allowed:
        raise DaskregError(f"{name} is {value!r}; {' or '.join(map(repr, allowed))} was expected.")


def triple(value: Item | Sequence[Item]) -> tuple[Item, Item, Item]:
    """A value for each of the axes z, y, x."""
    if isinstance(value, Sequence):
        if len(value) != 3:
            raise DaskregError(f"{list(value)} was given for the axes; one value or three, along z, y, x, were expected.")
        return value[0], value[1], value[2]
    return value, value, value


def odd_windows(sizes: Sequence[int]) -> None:
    """Windows with a voxel in the middle."""
    if any(n < 1 or n % 2 == 0 for n in sizes):
        raise DaskregError(f"a window has {list(sizes)} voxels; odd numbers were expected.")
