"""Imported where tests register: a second process that compiles a run's kernels takes more than it gives on cores of other tests.

Programs that tests run start it as ever; ``tests/unit/cluster/test_compile_ahead.py`` has its claims.
"""

from daskreg.cluster import rank_actor
from daskreg.cluster.compile_ahead import CompileHelper


class Alone(CompileHelper):
    """Never starts."""

    def start(self) -> None:
        """Nothing."""


rank_actor.CompileHelper = Alone
