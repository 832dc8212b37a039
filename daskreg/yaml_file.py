"""A YAML file of bounded size and depth: what it holds is not trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from daskreg.errors import ConfigError, NotFound, nearest_name

MAXIMUM_BYTES, MAXIMUM_VALUES, MAXIMUM_DEPTH = 1 << 20, 10_000, 32


class _Loader(yaml.SafeLoader):
    """Plain values. Keeps in ``repeated`` the keys that a mapping has twice, with their lines: YAML forbids what PyYAML takes."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[tuple[str, int, int]] = []

    def compose_mapping_node(self, anchor: Any) -> Any:
        """See PyYAML: the tree of a mapping as it is written, before ``<<`` is resolved."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if (key.tag, key.value) in lines:
                    self.repeated.append((key.value, lines[key.tag, key.value], line))
                lines.setdefault((key.tag, key.value), line)
        return node


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, of bounded size and depth. Raises NotFound and ConfigError, of a key that is there twice too."""
    try:
        with Path(path).open("rb") as file:
            found = file.read(MAXIMUM_BYTES + 1)
        loader = _Loader(found.decode() if len(found) <= MAXIMUM_BYTES else "")
        tree = loader.get_single_data()
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
    _require_once(loader.repeated, path)
    _require_small(tree, path)
    return tree


def _require_once(repeated: list[tuple[str, int, int]], path: str | Path) -> None:
    """Raises ConfigError for keys that a mapping has twice, of which all but the last would go unread."""
    if repeated:
        where = "; ".join(f"{key!r} twice, in line{f's {a} and {b}' if a != b else f' {a}'}" for key, a, b in repeated[:3])
        raise ConfigError(f"config {path} has {where}; write each key of a mapping once (a list holds all stages).")


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
