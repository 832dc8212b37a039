"""What will run, where, and will it fit."""

from daskreg.planning.plan import Level, Plan, make_plan, voxels

__all__ = ["Level", "Plan", "make_plan", "voxels"]
