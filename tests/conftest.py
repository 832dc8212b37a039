"""Settings that all tests share."""

import multiprocessing
import signal
from importlib import import_module
from pathlib import Path

import dask
import pytest
from hypothesis import HealthCheck, settings

from daskreg import machine

# a test must not depend on the speed of the machine
settings.register_profile("daskreg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("daskreg")

ALONE = "tests.alone"
PRELOAD = [ALONE, "pytest", "daskreg.workflows", "daskreg.cluster.worker_imports", "tests.unit.comm.ranks"]


# for packagers: what imports, reads, plans and refuses, and one small registration from its start to its end
QUICK = ("unit/grid", "unit/planning", "unit/storage/fs", "unit/cli/test_start.py", "unit/workflows/test_doctor.py",
         "unit/workflows/test_representations.py", "unit/test_config.py", "unit/test_public_api.py")  # fmt: skip
LONGER = {"slow", "gpu", "outside"}
PROCESSES = 4  # of a run of all tests, at most: some start clusters of their own


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's
def pytest_cmdline_main(config):
    """Run ``pytest`` without arguments on all cores, every file in one process; ``pytest -n 0`` runs on one."""
    parallel = config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput")
    if not parallel or config.option.numprocesses is not None or set(config.invocation_params.args) - {"-q", "-v", "-x"}:
        return
    if (cores := machine.cores().value) > 1:
        config.option.numprocesses, config.option.dist = min(cores, PROCESSES), "loadfile"


def pytest_collection_modifyitems(items):
    """Mark the tests of ``pytest -m quick``."""
    root = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(root).as_posix()
        if place.startswith(QUICK) and not LONGER & {mark.name for mark in item.iter_markers()}:
            item.add_marker("quick")


@pytest.fixture(scope="session", autouse=True)
def fork_server():
    """Fork the workers that tests start from one process that has imported everything; programs that tests run spawn theirs."""
    from distributed.utils import get_mp_context

    import_module(ALONE)
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context()  # has a list of its own, the first time
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        yield


@pytest.fixture(scope="module")
def without_verdicts():
    """Registrations of this process get no verdict, which takes longer than they do, where a module's claims are about others."""
    from tests.integration.workers import unjudged

    with unjudged():
        yield


@pytest.fixture(autouse=True)
def same_signals():
    """A command that has ended leaves the signals to the system. Ctrl-C interrupts a test, and what it starts, in the background
    too, where a shell has it ignored.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGINT] is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, action in before.items():
        signal.signal(number, action)
