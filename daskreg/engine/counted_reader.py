"""How often the voxels of a file are decoded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from daskreg.grid import Index, Region


class RegionReader(Protocol):
    """Voxels of a file (``storage.Volume``)."""

    def read(self, region: Region | None = None) -> NDArray[np.float32]:
        """Of a region, (Z, Y, X) float32, as they are stored."""


@dataclass(frozen=True, eq=False)
class CountedReader:
    """Counts the pieces of an image that its boxes are made of: what is decoded at once.

    shape: of the image;  piece: of a piece
    """

    volume: RegionReader
    shape: Index
    piece: Index
    _decoded: list[int] = field(default_factory=lambda: [0])
    _lock: Lock = field(default_factory=Lock)

    def read(self, region: Region | None = None) -> NDArray[np.float32]:
        """See ``RegionReader``."""
        box = region or Region((0, 0, 0), self.shape)
        ends = zip(box.start, box.stop, self.piece, strict=True)
        pieces = math.prod(-(-stop // n) - start // n if stop > start else 0 for start, stop, n in ends)
        with self._lock:
            self._decoded[0] += pieces
        return self.volume.read(region)

    @property
    def decoded(self) -> int:
        """Pieces so far."""
        return self._decoded[0]

    @property
    def pieces(self) -> int:
        """Of the whole image."""
        return math.prod(-(-n // k) for n, k in zip(self.shape, self.piece, strict=True))
