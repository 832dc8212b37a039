"""The digest of a kernel: a hash of everything in daskreg that decides its machine code.

It covers the bytecode and constants of a function, its default arguments and closure, and the values of the globals that it
loads: numbers, tuples, arrays, and other functions with theirs. It does not cover file paths, line numbers, docstrings, or the
names of functions and variables, so a kernel that is moved, documented or renamed keeps its digest. Argument names are covered
where a function calls with keywords. The digest is equal in every process.

What the digest does not know (compiler version, types of the arguments, processor) is part of the cache's own key.
"""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

# known by name: their versions are in the cache's key
LIBRARIES = frozenset({"math", "cmath", "numpy", "numba", "llvmlite", "operator"})
FLAGS = 0x04 | 0x08 | 0x20  # *args, **kwargs, generator; other flags depend on the module, such as ``from __future__``

KEYWORD_CALLS = frozenset({"KW_NAMES", "CALL_KW", "CALL_FUNCTION_EX"})  # Python 3.11 and 3.12, Python 3.13, all versions


def digest(*values: Any) -> str:
    """Hash of values, functions by their content: 32 hexadecimal digits.

    Raises TypeError where a function loads a global or closes over a value that has no stable content.
    """
    hashed, parts = hashlib.sha256(), _Parts()
    for part in parts.of(values):
        hashed.update(part.encode() + b"\0")
    if parts.keywords:
        hashed.update(repr(parts.arguments).encode())
    return hashed.hexdigest()[:32]


def _origin(value: Any) -> str:
    """The package that defines a function or type; empty where it is something else."""
    return (getattr(value, "__module__", None) or "").partition(".")[0] if hasattr(value, "__name__") else ""


class _Parts:
    """Values as a sequence of strings. Functions that are met again are known by their order."""

    def __init__(self) -> None:
        self.met: dict[int, int] = {}
        self.held: list[Any] = []  # an id is unique only while its object lives
        self.keywords = False  # whether any function calls with keywords
        self.arguments: list[tuple[str, ...]] = []

    def of(self, value: Any) -> Iterator[str]:
        """The strings of one value."""
        kind = type(value)
        if value is None or value is Ellipsis or kind in (bool, int, float, complex, str, bytes):
            yield f"{kind.__name__} {value!r}"
        elif kind in (tuple, list):
            yield f"{kind.__name__} {len(value)}"
            for item in value:
                yield from self.of(item)
        elif kind is frozenset:
            yield f"frozenset {sorted(map(repr, value))}"
        elif isinstance(value, np.generic):
            yield f"{value.dtype.str} {value.tobytes().hex()}"
        elif isinstance(value, np.ndarray):
            yield f"{value.dtype.str} {value.shape} {value.strides} {hashlib.sha256(value.tobytes()).hexdigest()}"
        elif isinstance(value, CodeType):
            yield from self._code(value, {})
        else:
            yield from self._named(value)

    def _named(self, value: Any) -> Iterator[str]:
        """Functions, types and modules."""
        from numba.core.dispatcher import Dispatcher
        from numba.core.types import Type

        if isinstance(value, ModuleType):
            if value.__name__.partition(".")[0] not in LIBRARIES:
                raise TypeError(f"a kernel uses the module {value.__name__}, whose content no digest covers; import its names.")
            yield f"module {value.__name__}"
        elif isinstance(value, Type):
            yield f"type {value!r}"
        elif isinstance(value, Dispatcher):
            yield f"compiled {sorted((k, repr(v)) for k, v in value.targetoptions.items())}"
            yield from self.of(value.py_func)
        elif hasattr(value, "_defn"):  # numba.extending.intrinsic
            yield "intrinsic"
            yield from self.of(value._defn)
        elif _origin(value) in LIBRARIES | {"builtins"}:
            yield f"named {value.__module__}.{getattr(value, '__qualname__', '') or value.__name__}"
        elif isinstance(value, FunctionType):
            yield from self._once(value, lambda: self._function(value))
        else:
            raise TypeError(
                f"a kernel uses {value!r}, whose content no digest covers; use a number, a tuple, an array or a formula."
            )

    def _once(self, value: Any, parts: Callable[[], Iterator[str]]) -> Iterator[str]:
        if id(value) in self.met:
            yield f"again {self.met[id(value)]}"
            return
        self.met[id(value)] = len(self.met)
        self.held.append(value)
        yield from parts()

    def _function(self, function: FunctionType) -> Iterator[str]:
        yield "function"
        yield from self._code(function.__code__, function.__globals__, function.__doc__)
        yield from self.of(function.__defaults__)
        yield from self.of(sorted((function.__kwdefaults__ or {}).items()))
        yield from self.of(tuple(cell.cell_contents for cell in function.__closure__ or ()))

    def _code(self, code: CodeType, scope: dict[str, Any], doc: str | None = None) -> Iterator[str]:
        yield f"code {code.co_code.hex()} {code.co_exceptiontable.hex()} {code.co_flags & FLAGS}"
        yield f"arguments {code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}"
        self.arguments.append(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        yield f"cells {len(code.co_cellvars)} {len(code.co_freevars)}"
        constants = code.co_consts
        if doc is not None and constants and constants[0] == doc:
            constants = (None, *constants[1:])
        for constant in constants:
            if isinstance(constant, CodeType):
                yield from self._code(constant, scope)
            else:
                yield from self.of(constant)
        instructions = list(dis.get_instructions(code))
        self.keywords |= any(i.opname in KEYWORD_CALLS for i in instructions)
        loaded = {i.argval for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        attributes = {i.argval for i in instructions if i.opname not in ("LOAD_GLOBAL", "LOAD_NAME")}
        for name in code.co_names:
            yield name if name in attributes else ""
            if name in loaded:
                yield from self._global(name, scope)

    def _global(self, name: str, scope: dict[str, Any]) -> Iterator[str]:
        if name in scope:
            yield from self.of(scope[name])
        else:
            yield f"builtin {name}"
