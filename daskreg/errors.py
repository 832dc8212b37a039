"""Every exception that daskreg raises on purpose.

::

    DaskregError
    ├── InputError                an input cannot be used (exit code 2)
    │   ├── NotFound              no such file, store, level or array
    │   ├── Unreadable            it exists, but cannot be decoded
    │   │   └── Unreachable       the server that has it does not answer
    │   ├── AxesError             2D or 4D where 3D is needed
    │   ├── GridError             zero or negative spacing, singular direction
    │   ├── ArrayError            an array of another shape, or of no numbers, where points or a matrix are needed
    │   ├── UnitsError            units that cannot be converted into each other
    │   ├── VoxelError            NaN, infinite, constant image, empty mask
    │   ├── NoOverlap             two images, or an image and its mask, do not overlap in space
    │   ├── ConfigError           unknown key or impossible value in the configuration
    │   │   └── ArgumentError     an argument that a function does not have, or lacks
    │   └── IncompleteRun         a RUN.zarr whose run failed or is still running
    ├── OutputError               the result cannot be written (exit code 2)
    │   ├── OutputExists          the output exists, and overwriting was not requested
    │   ├── OutputBusy            another process writes it
    │   └── OutOfSpace            the disk or the quota is full
    ├── PlanTooLarge              the plan does not fit the machine (exit code 2)
    └── RunError                  the registration itself failed (exit code 1)
        ├── Diverged              the loss or the transform is no longer finite
        ├── Stopped               it was interrupted; it can be resumed if it has a checkpoint
        └── RankLost              a worker died or stopped responding

Messages say what was found, what was expected and what to do, in one sentence or two. A misspelt name is answered with the
known name closest to it: ``suggestion``, ``require_known``; a number is finite and within bounds: ``require_number``.
"""

import difflib
import numbers
import os
import reprlib
from collections.abc import Callable, Collection
from typing import Any

SITE = "https://daskreg.github.io/daskreg"
ISSUES = "https://github.com/daskreg/daskreg/issues"


class DaskregError(Exception):
    """Base of every deliberate failure."""

    exit_code = 1


class InputError(DaskregError):
    """An input cannot be used."""

    exit_code = 2


class NotFound(InputError, FileNotFoundError):
    """No such file, store, level or array."""

    __str__ = Exception.__str__


class Unreadable(InputError):
    """It exists, but cannot be decoded."""


class Unreachable(Unreadable):
    """The server that has it does not answer."""


class AxesError(InputError):
    """Not exactly three spatial axes."""


class GridError(InputError):
    """Zero or negative spacing, a singular direction, or too few planes."""


class ArrayError(InputError, ValueError):
    """An array of another shape, or of no numbers."""


class UnitsError(InputError):
    """Units that cannot be converted into each other."""


class VoxelError(InputError):
    """NaN, infinite or constant voxels, or a mask without a voxel."""


class NoOverlap(InputError):
    """Two images, or an image and its mask, do not overlap in space."""


class ConfigError(InputError):
    """Unknown key or impossible value in the configuration."""


class ArgumentError(ConfigError, TypeError):
    """An argument that a function does not have, or lacks."""


class IncompleteRun(InputError):
    """A run store whose run failed or is still running."""


class OutputError(DaskregError):
    """The result cannot be written."""

    exit_code = 2


class OutputExists(OutputError, FileExistsError):
    """The output exists, and overwriting was not requested."""

    __str__ = Exception.__str__


class OutputBusy(OutputError):
    """Another process writes the output."""


class OutOfSpace(OutputError):
    """The disk or the quota is full."""


class PlanTooLarge(DaskregError):
    """The plan does not fit the machine."""

    exit_code = 2


class RunError(DaskregError):
    """The registration itself failed."""


class Diverged(RunError):
    """The loss or the transform is no longer finite."""


class Stopped(RunError):
    """The run was interrupted."""


class RankLost(RunError):
    """A worker died or stopped responding."""


def all_of(*calls: Callable[[], Any]) -> list[Any]:
    """What all calls return. Raises what one of them raises, of several the first, with the sentences of all."""
    values, refusals = [], list[DaskregError]()
    for call in calls:
        try:
            values.append(call())
        except DaskregError as error:
            refusals.append(error)
    if len(refusals) > 1:
        sentences = dict.fromkeys(line for error in refusals for line in str(error).splitlines())
        raise type(refusals[0])("\n".join(sentences)) from refusals[0]
    if refusals:
        raise refusals[0]
    return values


def counted(count: int, noun: str) -> str:
    """``1 level``, ``3 levels``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def site_page(name: str, anchor: str = "") -> str:
    """The address of a page of the documentation, which a package that was installed by pip does not hold."""
    return f"{SITE}/{name}.html{anchor and f'#{anchor}'}"


def require(true: object, sentence: str) -> None:
    """Raises ConfigError with a sentence where something is not true."""
    if not true:
        raise ConfigError(sentence)


def closest(word: object, known: Collection[str], cutoff: float = 0.5) -> str | None:
    """The known name most similar to ``word``, or to it in any case; None where none is at least ``cutoff`` (0 to 1) similar."""
    in_any_case = {name.lower(): name for name in known}
    found = difflib.get_close_matches(str(word), known, 1, cutoff)
    return next(iter([*found, *map(in_any_case.get, difflib.get_close_matches(str(word).lower(), in_any_case, 1, cutoff))]), None)


def nearest_name(path: str) -> str:
    """The end of a sentence about a local path that does not exist: the most similar name in its folder, if there is one."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return f"; neither does the folder {folder}" if folder and not os.path.exists(folder) else ""
    near = closest(name, [other for other in names if _alike(name, other)], 0.75)
    return f"; the nearest name there is {os.path.join(folder, near)}" if near else ""


def _alike(name: str, other: str) -> bool:
    """Whether two names are similar without their endings, which files of one folder share."""
    stem, its = name.partition(".")[0], other.partition(".")[0]
    return stem.lower() == its.lower() or closest(stem, [its]) is not None


def suggestion(word: object, known: Collection[str]) -> str:
    """The end of a sentence about an unknown name: ``did you mean 'linear'?``, or which names are known."""
    near = closest(word, known)
    return f"did you mean {near!r}?" if near else f"known are {', '.join(known)}."


def require_known(kind: str, word: object, known: Collection[str]) -> None:
    """Raises ConfigError, with a suggestion, unless ``word`` is one of the known names of this kind."""
    if not isinstance(word, str) or word not in known:
        raise ConfigError(f"unknown {kind} {reprlib.repr(word)}; {suggestion(word, known)}")


def require_number(name: str, value: Any, low: float, high: float, *, whole: bool = False) -> None:
    """Raises ConfigError unless ``value`` is a finite number, whole if asked for, from ``low`` to ``high``."""
    kind: Any = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {reprlib.repr(value)}; {what} from {low:g} to {high:g} was expected.")
