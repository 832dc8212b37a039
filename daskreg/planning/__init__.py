"""What will run, where, and whether it fits."""

from daskreg.planning.layout import COUNTED_BYTES, PLACES, REACH_INTERVAL, RESIDENCIES, SOURCE, STATES, Encoding, Layout, Level
from daskreg.planning.memory import needs_spare
from daskreg.planning.plan import Plan, format_grid, halo_of, make_plan

__all__ = [
    "COUNTED_BYTES",
    "PLACES",
    "REACH_INTERVAL",
    "RESIDENCIES",
    "SOURCE",
    "STATES",
    "Encoding",
    "Layout",
    "Level",
    "Plan",
    "format_grid",
    "halo_of",
    "make_plan",
    "needs_spare",
]
