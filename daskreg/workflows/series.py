"""``daskreg series``: rounds, tiles or times, each registered to a reference or to the one before; one table, resumable."""

from __future__ import annotations

import csv
import inspect
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from daskreg.arguments import checked_arguments
from daskreg.config import DeviceName
from daskreg.deferred import DeferredModule
from daskreg.engine.report import Progress
from daskreg.errors import ConfigError, DaskregError, InputError, OutputError, RunError, counted, require_known
from daskreg.html import Printable
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, is_remote, open_stack, open_volume
from daskreg.storage.fs.address import join, parse_address, with_key, without_key
from daskreg.storage.fs.files import exists, replace_text
from daskreg.workflows.apply import apply
from daskreg.workflows.inputs import ConfigLike, Request, as_config
from daskreg.workflows.register import register
from daskreg.workflows.resources import LOCAL
from daskreg.workflows.resume import from_anywhere, same_address
from daskreg.workflows.unchanged import input_digests

if TYPE_CHECKING:
    from daskreg import cluster as clusters
else:
    clusters = DeferredModule("daskreg.cluster")

log = logging.getLogger("daskreg")
To = Literal["reference", "previous"]
TABLE = "series.csv"
COLUMNS = (
    "number", "image", "fixed", "state", "verdict", "correlation_before", "correlation_after", "folded_percent", "seconds", "run",
    "moved", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One image of a series.

    number: from 0;  image: its address;  fixed: number of the image that it is registered to, None for the reference;  state:
    reference, registered, kept (of an earlier call), failed or left out;  verdict, measures: of its run;  run, moved: addresses;
    error: a sentence
    """

    number: int
    image: str
    fixed: int | None = None
    state: str = "reference"
    verdict: str = ""
    measures: Mapping[str, float] = field(default_factory=dict)
    run: str = ""
    moved: str = ""
    error: str = ""

    def cells(self) -> list[str]:
        """Of the table, in the order of COLUMNS."""
        numbers = {k: f"{v:.6g}" for k, v in self.measures.items()}
        fixed = "" if self.fixed is None else str(self.fixed)
        named = {"number": str(self.number), "fixed": fixed, **numbers}
        return [str(named.get(c, getattr(self, c, ""))) for c in COLUMNS]

    def line(self) -> str:
        """For people."""
        if self.state in ("failed", "left out"):
            return f"{self.number} {self.image}: {self.state}: {self.error}"
        if self.fixed is None:
            return f"{self.number} {self.image}: the reference"
        before, after = (self.measures.get(f"correlation_{k}", float("nan")) for k in ("before", "after"))
        return (
            f"{self.number} {self.image}: {self.state}, to {self.fixed}, {self.verdict}, correlation {before:.3f} -> {after:.3f}"
        )


@dataclass(frozen=True, repr=False)
class Series(Printable):
    """A registered series: its folder, and a row an image."""

    path: str
    rows: tuple[Row, ...]

    @property
    def table(self) -> str:
        """The address of the table."""
        return join(self.path, TABLE)

    def transform(self, number: int) -> Transform:
        """From points of the reference to points of an image. Raises ConfigError where there is none."""
        return _to_reference(self.rows, number)

    def __repr__(self) -> str:
        return f"Series({counted(len(self.rows), 'image')}, {self.table})"

    def lines(self) -> list[str]:
        """One an image, and where the table is."""
        return [*(row.line() for row in self.rows), f"table: {self.table}"]


OF_REGISTER = inspect.signature(register).parameters.keys() - {"fixed", "moving", "output", "resume", "candidates"}


@checked_arguments(OF_REGISTER, preset="config", checkpoint_every="checkpoint")
def series(
    images: Sequence[str | Path],
    output: str | Path,
    config: ConfigLike = "brain",
    *,
    reference: int = 0,
    to: To = "reference",
    channel: int | str | None = None,
    device: DeviceName = "auto",
    overwrite: bool = False,
    moved: bool = True,
    progress: Callable[[Progress], None] | Literal[False] | None = None,
    tell: Callable[[str], None] = log.info,
    **resources: Any,
) -> Series:
    """Register the images of a series, one after the other, and resample each, all channels, on the grid of the reference.

    Parameters
    ----------
    images
        Addresses, one an image, in their order; a single one that holds several times stands for all of them.
    output
        A folder: a run an image (``001.zarr``), the resampled images (``moved/001.ome.zarr``) and ``series.csv``, written anew
        after each image. What is there of an earlier call with the same images and configuration is kept, and an unfinished run
        is continued.
    config
        As for ``register``.
    reference, to
        The number of the image whose space all others are brought into; ``to="previous"`` registers each image to its neighbour
        on the side of the reference, and chains the transforms.
    channel
        The channel that is registered, by number or name, of all images whose addresses choose none; all channels are resampled.
    overwrite
        Start again. moved: whether to resample. tell: called with a line an image. progress and all others: see ``register``.

    An image that cannot be opened or registered is told in the table, and the others are done; with ``to="previous"`` those
    behind it are left out. Raises InputError in all its forms for the reference and for the configuration, before the first
    registration; ConfigError where the folder holds another series.
    """
    require_known("to", to, ("reference", "previous"))
    path = parse_address(output).path
    sources = _expanded(images)
    if not 0 <= reference < len(sources):
        raise ConfigError(f"reference {reference} is no image of the series; it has {len(sources)}, from 0.")
    used = [s if channel is None or parse_address(s).channel is not None else with_key(s, "channel", channel) for s in sources]
    plan = {k: _fixed(k, reference, to) for k in _order(len(sources), reference)}
    chosen = as_config(config)
    requests = {k: Request(used[f], used[k], chosen) for k, f in plan.items() if f is not None}
    open_volume(used[reference])
    wrong = {k: error for k, request in requests.items() if (error := _why_not_opened(request)) is not None}
    if not is_remote(path):
        _make_folder(path)
    rows = {k: Row(k, s) for k, s in enumerate(sources)}
    with _one_cluster({**resources, "device": device, "progress": progress}) as given:
        for k, f in plan.items():
            if f is not None:
                run = join(path, f"{k:03}.zarr")
                rows[k] = _registered(Row(k, sources[k], f, run=run), rows[f], requests[k], wrong.get(k), given, overwrite)
            if rows[k].state in ("registered", "kept") and moved:
                rows[k] = _resampled(rows, k, path, reference, device, overwrite)
            _write_table(path, rows)
            tell(rows[k].line())
    return Series(path, tuple(rows[k] for k in sorted(rows)))


def _why_not_opened(request: Request) -> str | None:
    """The sentence that a registration would end with before a voxel is read; None where it would not."""
    try:
        request.open()
    except InputError as error:
        return str(error)
    return None


@contextmanager
def _one_cluster(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same keywords of ``register``, where workers are jobs with a client of those: they queue once for all registrations."""
    cluster = given.get("cluster")
    if given.get("client") is not None or cluster in LOCAL or cluster not in clusters.BATCH_SYSTEMS:
        yield given
        return
    with clusters.existing_client(None, cluster, given.get("workers")) as client:
        yield {**given, "client": client, "cluster": None}


def _expanded(images: Sequence[str | Path]) -> list[str]:
    """An address an image: of a single one that holds several times, an address a time. Raises InputError."""
    given = [images] if isinstance(images, str | Path) else list(images)
    if others := [type(image).__name__ for image in given if not isinstance(image, str | Path)]:
        raise ConfigError(f"a series of {others[0]} was given; addresses of images were expected: write them to files first.")
    sources = [str(image) for image in given]
    if len(sources) == 1 and parse_address(sources[0]).time is None:
        stack = open_stack(sources[0])
        times = next((n for n, a in zip(stack.data.shape, stack.lead) if a.kind == "time"), 1)
        sources = [with_key(sources[0], "time", k) for k in range(times)]
    if len(sources) < 2:
        raise ConfigError("a series has two images or more: name them, or one image that holds several times.")
    return sources


def _order(count: int, reference: int) -> list[int]:
    """The reference, those behind it, those before it: each after the neighbour that it may be registered to."""
    return [*range(reference, count), *range(reference - 1, -1, -1)]


def _fixed(number: int, reference: int, to: str) -> int | None:
    if number == reference:
        return None
    return reference if to == "reference" else number - 1 if number > reference else number + 1


def _make_folder(path: str) -> None:
    try:
        os.makedirs(os.path.join(path, "moved"), exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error.strerror}; choose another folder.") from None


# ---------------------------------------------------------------- one image


def _registered(row: Row, fixed: Row, request: Request, wrong: str | None, given: Mapping[str, Any], overwrite: bool) -> Row:
    """The row of an image that is registered now, or was. wrong: why it cannot be."""
    if fixed.state in ("failed", "left out"):
        return _with(row, state="left out", error=f"image {fixed.number}, to which it would be registered, was {fixed.state}")
    if wrong is not None:
        return _with(row, state="failed", error=wrong)
    kept = not overwrite and _complete(row.run)
    try:
        if kept:
            _require_same(row.run, request)
            run = RunStore.open(row.run)
        else:
            resume = not overwrite and exists(row.run)
            images = request.fixed, request.moving
            run = register(*images, request.config, output=row.run, overwrite=overwrite, resume=resume, **given).store
    except (RunError, InputError) as error:
        if isinstance(error, ConfigError):
            raise
        return _with(row, state="failed", error=str(error))
    report = run.provenance
    metrics = report.get("metrics", {})
    measures = {f"correlation_{k}": float(metrics[k]["ncc"]) for k in ("before", "after") if k in metrics}
    measures["folded_percent"] = float(metrics.get("jacobian", {}).get("folded_percent", 0.0))
    measures["seconds"] = float(report.get("seconds", {}).get("total", 0.0))
    verdict = str((report.get("verdict") or {}).get("status", ""))
    return _with(row, state="kept" if kept else "registered", verdict=verdict, measures=measures)


def _with(row: Row, **values: Any) -> Row:
    return Row(**{**row.__dict__, **values})


def _complete(path: str) -> bool:
    return exists(path) and RunStore.attach(path).complete


def _require_same(path: str, request: Request) -> None:
    """Raises ConfigError where a complete run is of other images or of another configuration."""
    store, wanted = RunStore.attach(path), request.recipe()
    known = store.recipe.get("inputs")
    found = input_digests(request) if isinstance(known, Mapping) else known
    recorded = {name: from_anywhere(store, name, store.recipe.get(name)) for name in ("fixed", "moving")}
    other = [name for name, its in recorded.items() if not same_address(wanted[name], its)]
    other += ["config"] if store.recipe.get("config") != wanted["config"] else []
    if not other and found != known:
        other = ["content of its images"]
    if other:
        raise ConfigError(
            f"{path} is of another series: its {' and '.join(other)} differs; choose another folder, or --overwrite."
        )


def _resampled(rows: Mapping[int, Row], number: int, path: str, reference: int, device: DeviceName, overwrite: bool) -> Row:
    """The row with the address of the image on the grid of the reference; what was there of a kept run is kept."""
    row, target = rows[number], join(path, f"moved/{number:03}.ome.zarr")
    if row.state != "kept" or overwrite or not exists(target):
        image = without_key(row.image, "channel")
        like = without_key(rows[reference].image, "channel")
        grid = open_stack(like).grid
        try:
            apply(_to_reference(rows, number), image, target, like=grid, device=device, overwrite=True)
        except DaskregError as error:
            return _with(row, state="failed", error=str(error))
    return _with(row, moved=target)


def _to_reference(rows: Mapping[int, Row] | Sequence[Row], number: int) -> Transform:
    """The chain of the transforms from the reference to an image. Raises ConfigError where one is missing."""
    chain: list[Row] = []
    row = rows[number]
    while row.fixed is not None:
        if row.state not in ("registered", "kept"):
            raise ConfigError(
                f"image {number} has no transform to the reference: image {row.number} was {row.state}: {row.error}"
            )
        chain.append(row)
        row = rows[row.fixed]
    if not chain:
        raise ConfigError(f"image {number} is the reference; its transform is the identity.")
    total = load_transform(chain[-1].run)
    for step in reversed(chain[:-1]):
        total = total.then(load_transform(step.run))
    return total


def _write_table(path: str, rows: Mapping[int, Row]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows[k].cells() for k in sorted(rows))
    replace_text(join(path, TABLE), text.getvalue())
