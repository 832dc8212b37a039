"""Arguments that have another name: a former one works, with a DeprecationWarning; that of a command's option is refused."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from daskreg.errors import ConfigError

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


def option_names(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate the function of a command, ``option="argument"`` where they differ. Raises ConfigError for an option."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for option in names.keys() & kwargs.keys():
                what = f"{function.__name__}() has no argument {option!r}, which is an option of the command"
                raise ConfigError(f"{what}; write {names[option]}=.")
            return function(*args, **kwargs)

        return call

    return decorate


def _rename(kwargs: dict[str, Any], name: str, old: str, new: str) -> None:
    if new in kwargs:
        raise TypeError(f"{name}() got {new!r} and its former name {old!r}; give one of them.")
    # 3: the line that calls the decorated function
    warnings.warn(f"the argument {old!r} of {name}() is now {new!r}.", DeprecationWarning, stacklevel=3)
    kwargs[new] = kwargs.pop(old)
