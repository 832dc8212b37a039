"""Variables of the environment that a library ignores, said in a sentence of ours in place of its warning."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, MutableMapping

OPTIONS = re.compile(r"FSSPEC_([^_]+)")  # of all file systems of a protocol; longer names are of one option, and any text


def leave_out_unreadable(environment: MutableMapping[str, str]) -> Iterator[str]:
    """Delete options of fsspec that are no JSON object, which it ignores with a raw warning in every process; a sentence each."""
    for name in [name for name in environment if OPTIONS.fullmatch(name)]:
        try:
            readable = isinstance(json.loads(environment[name]), dict)
        except ValueError:
            readable = False
        if not readable:
            del environment[name]
            yield f"the variable {name} is left out: it is no JSON object, such as {name}='{{\"anon\": true}}'."  # may hold keys
