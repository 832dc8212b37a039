"""Imported by the fork server of daskreg's own workers, which ends with its parent."""

from importlib import import_module

from daskreg import machine

machine.end_with_parent()
import_module("daskreg.cluster.worker_imports")
