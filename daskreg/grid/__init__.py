"""The position of voxels: grids, regions, partitions and pyramid levels, without arrays of voxels and without I/O."""

from daskreg.grid.grid import IDENTITY, OPENED_ARRAY, UNITS, Grid, unit_name
from daskreg.grid.partition import MINIMUM_PLANES, Partition, Span, cut_orders
from daskreg.grid.pyramid import Sigmas, level_factors, matching_sigmas, nearest_scale, shrink_factors
from daskreg.grid.region import Index, Region

__all__ = [
    "IDENTITY",
    "MINIMUM_PLANES",
    "OPENED_ARRAY",
    "UNITS",
    "Grid",
    "Index",
    "Partition",
    "Region",
    "Sigmas",
    "Span",
    "cut_orders",
    "level_factors",
    "matching_sigmas",
    "nearest_scale",
    "shrink_factors",
    "unit_name",
]
