"""What will run, where, and will it fit."""

from daskreg.planning.memory import needs_spare
from daskreg.planning.plan import RESIDENCIES, Level, Plan, halo_of, make_plan, voxels

__all__ = ["RESIDENCIES", "Level", "Plan", "halo_of", "make_plan", "needs_spare", "voxels"]
