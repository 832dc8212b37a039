"""The map of where two images match, packed into a short text for provenance."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daskreg.errors import Unreadable
from daskreg.grid import Index

MOST_VOXELS = 1 << 22


@dataclass(frozen=True)
class MatchMap:
    """States of coarse voxels, (Z, Y, X) uint8: 0 nothing to compare, 1 matches best where it is, 2 does not.

    factors: fine voxels of the fixed image in a coarse one, which begin at its first voxel
    """

    states: NDArray[np.uint8]
    factors: Index

    def transpose(self, order: Index) -> MatchMap:
        """With axis ``order[0]`` first."""
        z, y, x = (self.factors[a] for a in order)
        return MatchMap(self.states.transpose(order), (z, y, x))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        packed = zlib.compress(np.ascontiguousarray(self.states).tobytes(), 9)
        return {
            "shape": list(self.states.shape),
            "factors": list(self.factors),
            "states": base64.b64encode(packed).decode("ascii"),
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> MatchMap | None:
        """From provenance; None for an empty record. Raises Unreadable for one that is damaged."""
        if not record:
            return None
        try:
            shape, factors = (tuple(int(n) for n in record[key]) for key in ("shape", "factors"))
            size = int(np.prod(shape))
            if len(shape) != 3 or len(factors) != 3 or not 0 < size <= MOST_VOXELS or min(factors) < 1:
                raise ValueError("shape")
            raw = zlib.decompressobj().decompress(base64.b64decode(record["states"]), size)
            states = np.frombuffer(raw, np.uint8).reshape(shape)
        except (KeyError, TypeError, ValueError, zlib.error, binascii.Error):
            raise Unreadable("the run's map of where the images match is damaged; the rest of it can be used.") from None
        return cls(states, (factors[0], factors[1], factors[2]))
