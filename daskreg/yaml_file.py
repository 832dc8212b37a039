"""A YAML file of bounded size and depth: what it holds is not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from daskreg.errors import ConfigError, NotFound, nearest_name

MAXIMUM_BYTES, MAXIMUM_VALUES, MAXIMUM_DEPTH = 1 << 20, 10_000, 32


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, of bounded size and depth. Raises NotFound and ConfigError."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(MAXIMUM_BYTES + 1)
        tree = yaml.safe_load(found.decode()) if len(found) <= MAXIMUM_BYTES else None
    except FileNotFoundError:
        raise NotFound(f"config {path} does not exist{nearest_name(str(path))}.") from None
    except OSError as error:
        raise NotFound(f"config {path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise ConfigError(f"config {path} is not text in UTF-8: {error}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise ConfigError(f"config {path} is nested too deeply; a mapping with the key 'stages' was expected.") from None
    if len(found) > MAXIMUM_BYTES:
        raise ConfigError(f"config {path} has more than {MAXIMUM_BYTES} bytes; a mapping with the key 'stages' was expected.")
    _require_small(tree, path)
    return tree


def _require_small(tree: Any, path: str | Path) -> None:
    """Raises ConfigError for a tree that no configuration has: aliases of aliases stand for more values than memory holds."""
    pending, count = [(tree, 0)], 0
    while pending:
        value, depth = pending.pop()
        count += 1
        if count > MAXIMUM_VALUES or depth > MAXIMUM_DEPTH:
            raise ConfigError(
                f"config {path} holds more than {MAXIMUM_VALUES} values, or {MAXIMUM_DEPTH} levels of them; "
                "a mapping with the key 'stages' was expected, without aliases of aliases."
            )
        inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple | set) else ()
        pending += [(v, depth + 1) for v in inner]
