"""These tests need PyTorch: without it they are not collected, and ``pytest tests/torch`` fails because there are none."""

from importlib.util import find_spec

_found = find_spec("torch")
collect_ignore_glob = [] if _found is not None and _found.origin is not None else ["*.py"]
