"""What a run may use: workers, memory, links, time. None of it shows in the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from dask.utils import parse_bytes

from daskreg.errors import ConfigError, closest
from daskreg.grid import MINIMUM_PLANES
from daskreg.planning import RESIDENCIES

_NAMED = ("output", "fixed_mask", "moving_mask", "client", "cluster", "spacing", "overwrite", "resume", "progress")


@dataclass(frozen=True)
class Resources:
    """What a run may use, none of which shows in its result.

    workers: blocks the fixed image is cut into, None for one a worker of the cluster;  memory: bytes a worker may use, None for
    what it has;  device: where kernels run;  residency: of the moving image, auto, replicate, window or ring;  comm: auto, tcp
    or ucx;  threads: CPU threads of a worker;  checkpoint: seconds between two, None for none;  retries: how often a run that
    lost a worker goes on without it; deadline: seconds after which a silent rank counts as lost;  fewest: planes that a rank's
    block has at least;  trace: keep the times at which the ring sampled and waited.
    """

    workers: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory: int | None = None
    residency: str = "auto"
    comm: Literal["auto", "tcp", "ucx"] = "auto"
    threads: int | None = None
    checkpoint: float | None = 180.0
    retries: int = 1
    deadline: float = 600.0
    fewest: int = MINIMUM_PLANES
    trace: bool = False

    @property
    def count(self) -> int:
        """Workers, once settled."""
        return self.workers or 1


def as_resources(given: Mapping[str, Any]) -> Resources:
    """Keyword arguments as Resources. Raises ConfigError naming an unknown one, and what cannot be."""
    known = [f.name for f in fields(Resources)]
    for name in given:
        if name not in known:
            near = closest(name, [*known, *_NAMED])
            raise ConfigError(f"register() has no argument {name!r}" + (f"; did you mean {near!r}?" if near else "."))
    use = Resources(**{**given, "memory": parse_memory(given.get("memory"))})
    if use.workers is not None and use.workers < 1:
        raise ConfigError(f"workers is {use.workers}; at least 1 was expected.")
    if use.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {use.device!r}; auto, cpu or cuda were expected.")
    if use.residency not in ("auto", *RESIDENCIES):
        raise ConfigError(f"residency is {use.residency!r}; auto, {', '.join(RESIDENCIES)} were expected.")
    if use.comm not in ("auto", "tcp", "ucx"):
        raise ConfigError(f"comm is {use.comm!r}; auto, tcp or ucx were expected.")
    return use


def parse_memory(text: int | str | None) -> int | None:
    """Bytes from 48GB, 512MiB or a number. Raises ConfigError."""
    if text is None or isinstance(text, int):
        return text
    try:
        return int(parse_bytes(text))
    except ValueError:
        raise ConfigError(f"memory {text!r} is no amount of memory; write it like 48GB or 512MiB.") from None
