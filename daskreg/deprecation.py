"""Arguments that had another name, which works still, with a DeprecationWarning."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function of which some keywords were renamed, ``old="new"``. Raises TypeError, when called, for both."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                _rename(kwargs, function.__name__, old, names[old])
            return function(*args, **kwargs)

        return call

    return decorate


def _rename(kwargs: dict[str, Any], name: str, old: str, new: str) -> None:
    if new in kwargs:
        raise TypeError(f"{name}() got {new!r} and its former name {old!r}; give one of them.")
    # 3: the line that calls the decorated function
    warnings.warn(f"the argument {old!r} of {name}() is now {new!r}.", DeprecationWarning, stacklevel=3)
    kwargs[new] = kwargs.pop(old)
