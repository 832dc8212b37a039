"""Changes to the bytes, words and JSON of a file, as Hypothesis strategies: each is a function of the content."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass

from hypothesis import strategies as st

NUMBERS = [
    0,
    -1,
    1,
    3,
    7,
    255,
    2**15,
    2**31,
    2**63,
    2**80,
    1e-320,
    1e-9,
    0.5,
    1e9,
    1e30,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
]
WORDS = [
    "",
    "x",
    "nan",
    "1",
    "0.5",
    "/",
    "..",
    "../..",
    "/etc/hostname",
    "an absolute path",
    "\u03bcm",
    "gram",
    "nm",
    "bytes",
    "0.4",
    "0.7",
]
TREES = [None, True, False, [], {}, [[]], {"a": {}}, [0, 0, 0], [1, 1, 1], [2, 2, 2, 2], ["x"], {"name": "x"}, {"path": "0"}]
TOKEN = re.compile(rb"[A-Za-z0-9_.+-]+")


@dataclass(frozen=True)
class Bytes:
    """Some bytes are flipped, replaced, removed, repeated or cut off; a place is a part of the length."""

    steps: tuple[tuple[str, float, int], ...]

    def __call__(self, content: bytes) -> bytes:
        raw = bytearray(content)
        for kind, part, value in self.steps:
            at = min(int(part * len(raw)), max(len(raw) - 1, 0))
            match kind:
                case "flip" if raw:
                    raw[at] ^= 1 << value % 8
                case "set" if raw:
                    raw[at] = value
                case "fill":
                    raw[at : at + 8] = bytes([value]) * len(raw[at : at + 8])
                case "remove":
                    del raw[at : at + 1 + value % 16]
                case "repeat":
                    raw[at:at] = raw[at : at + 1 + value]
                case "cut":
                    del raw[at:]
        return bytes(raw)


@dataclass(frozen=True)
class Words:
    """A word or number of a text is replaced, removed or repeated."""

    part: float
    new: bytes
    kind: str

    def __call__(self, content: bytes) -> bytes:
        found = list(TOKEN.finditer(content))
        if not found:
            return self.new
        a, b = found[int(self.part * len(found))].span()
        return (
            content[:a]
            + {"replace": self.new, "remove": b"", "repeat": content[a:b] + b" " + content[a:b]}[self.kind]
            + content[b:]
        )


@dataclass(frozen=True)
class Json:
    """One node of a document is replaced, deleted, repeated, negated, or exchanged with another one."""

    part: float
    other: float
    kind: str
    value: object

    def __call__(self, content: bytes) -> bytes:
        holder = [json.loads(content)]
        nodes = list(_nodes(holder))
        parent, key = nodes[int(self.part * len(nodes))]
        old = parent[key]
        match self.kind:
            case "replace":
                parent[key] = copy.deepcopy(self.value)
            case "delete":
                del parent[key]
            case "repeat" if isinstance(old, list):
                old.append(copy.deepcopy(old[-1]) if old else 0)
            case "negate" if isinstance(old, int | float) and not isinstance(old, bool):
                parent[key] = -old
            case "exchange":
                there, name = nodes[int(self.other * len(nodes))]
                parent[key] = copy.deepcopy(there[name])
            case _:
                parent[key] = [old]
        return json.dumps(holder[0] if holder else None).encode()


def _nodes(holder):
    """Every (container, key) of a document, the whole first."""
    waiting = [(holder, 0)]
    while waiting:
        parent, key = waiting.pop()
        yield parent, key
        value = parent[key]
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [(value, k) for k, _ in inner]


PART = st.floats(0, 1, exclude_max=True)
BYTES = st.builds(
    Bytes,
    st.lists(
        st.tuples(st.sampled_from(["flip", "flip", "set", "fill", "remove", "repeat", "cut"]), PART, st.integers(0, 255)),
        min_size=1,
        max_size=3,
    ).map(tuple),
)
HEAD = st.builds(Bytes, st.tuples(st.tuples(st.sampled_from(["flip", "set", "fill"]), st.floats(0, 0.05), st.integers(0, 255))))
WORD = st.builds(
    Words,
    PART,
    st.sampled_from([str(v).encode() for v in NUMBERS + WORDS]),
    st.sampled_from(["replace", "replace", "remove", "repeat"]),
)
JSON = st.builds(
    Json,
    PART,
    PART,
    st.sampled_from(["replace", "replace", "delete", "repeat", "negate", "exchange", "wrap"]),
    st.sampled_from([*NUMBERS, *WORDS, *TREES]),
)
