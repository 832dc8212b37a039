"""Calls for a run that goes on in another thread of this process: end it with a checkpoint, or go on with its next level."""

from __future__ import annotations

from daskreg.arguments import checked_arguments
from daskreg.deferred import DeferredModule
from daskreg.engine.report import NEXT, STOP
from daskreg.errors import ConfigError

cluster_run = DeferredModule("daskreg.cluster.run")


@checked_arguments()
def stop() -> None:
    """Have the runs of this process write a checkpoint and end: ``register`` raises Stopped, and says how to go on.

    From another thread, as a run keeps its own until it ends. Raises ConfigError where none runs.
    """
    _ask(STOP)


@checked_arguments()
def next_level() -> None:
    """Have the runs of this process end the level that they are at, as if it had converged: behind the last comes the result.

    From another thread, as a run keeps its own until it ends. Raises ConfigError where none runs.
    """
    _ask(NEXT)


def _ask(what: float) -> None:
    if not cluster_run.ask_running(what):
        raise ConfigError("no registration runs in this process; call this from another thread while one does.")
