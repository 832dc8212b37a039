"""``daskreg series``: rounds, tiles or times, each registered to a reference or to the one before; one table, resumable."""

from __future__ import annotations

import csv
import inspect
import io
import logging
import os
import re
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
from daskreg.reporting.log import shown
from daskreg.storage import RunStore, is_remote, open_stack, open_volume
from daskreg.storage.fill import Fill
from daskreg.storage.fs.address import join, parse_address, with_key, without_key
from daskreg.storage.fs.files import exists, replace_text
from daskreg.storage.fs.lock import only_writer
from daskreg.workflows.apply import apply
from daskreg.workflows.inputs import ConfigLike, Request, as_config
from daskreg.workflows.register import register
from daskreg.workflows.resources import LOCAL
from daskreg.workflows.same_series import require_same

if TYPE_CHECKING:
    from daskreg import cluster as clusters
else:
    clusters = DeferredModule("daskreg.cluster")

log = logging.getLogger("daskreg")
To = Literal["reference", "previous"]
TABLE = "series.csv"
COLUMNS = (
    "number", "image", "fixed", "state", "verdict", "chain_verdict", "correlation_before", "correlation_after", "folded_percent",
    "seconds", "run", "moved", "error",
)  # fmt: skip
VERDICTS = ("", "ok", "doubtful", "failed")  # the worst last
RUN = re.compile(r"(\d{3,})\.zarr")


@dataclass(frozen=True)
class Row:
    """One image of a series.

    number: from 0;  image: its address;  fixed: number of the image that it is registered to, None for the reference;  state:
    reference, waiting, registered, kept (of an earlier call), failed or left out;  verdict, measures: of its run;
    chain_verdict: the worst of the runs that bring it to the reference;  run, moved: addresses;  error: a sentence
    """

    number: int
    image: str
    fixed: int | None = None
    state: str = "waiting"
    verdict: str = ""
    chain_verdict: str = ""
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
        chain = "" if self.chain_verdict == self.verdict else f"; {self.chain_verdict} on the way to the reference"
        said = f"{self.state}, to {self.fixed}, {self.verdict}, correlation {before:.3f} -> {after:.3f}{chain}"
        return f"{self.number} {self.image}: {said}"


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
        A folder: a run an image (``001.zarr``, from the image that it is registered to), the resampled images
        (``moved/001.ome.zarr``, without the reference) and ``series.csv``, written anew after each image. What is there of an
        earlier call with the same images and configuration is kept, and an unfinished run is continued.
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
    behind it are left out. One whose result is wrong is no error: see ``chain_verdict`` of the table. Raises InputError in all
    its forms for the reference and for the configuration, ConfigError where the folder holds another series, and OutputBusy where
    another process works on it, before anything is written.
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
    runs = {k: join(path, f"{k:03}.zarr") for k in requests}
    kept = {} if overwrite else _kept_runs(runs, requests, wrong)
    if not is_remote(path):
        _make_folder(path)
        _tell_of_other_runs(path, runs)
    rows = {k: Row(k, sources[k], f, "reference" if f is None else "waiting") for k, f in plan.items()}
    for k in kept:
        there = _moved_at(path, k) if exists(_moved_at(path, k)) else ""
        rows[k] = _with(_measured(rows[k], rows, runs[k], kept[k], "kept"), moved=there)
    fill = chosen.fill if resources.get("fill") is None else resources["fill"]
    of_all = {**resources, "device": device, "progress": progress}
    with only_writer(join(path, TABLE)), _one_cluster(of_all) as given, _saying_how_to_go_on(rows, path):
        for k, f in plan.items():
            if f is not None:
                rows[k] = _registered(rows, k, runs[k], requests[k], wrong.get(k), given, overwrite)
            if rows[k].state in ("registered", "kept") and moved:
                rows[k] = _resampled(rows, k, path, reference, device, overwrite, fill)
            _write_table(path, rows)
            tell(rows[k].line())
    return Series(path, tuple(rows[k] for k in sorted(rows)))


def _kept_runs(runs: Mapping[int, str], requests: Mapping[int, Request], wrong: dict[int, str]) -> dict[int, RunStore]:
    """The complete runs of an earlier call; ``wrong`` gets those whose images cannot be read. Raises ConfigError for others."""
    kept = {}
    for k in requests:
        try:
            if k not in wrong and _complete(runs[k]):
                require_same(runs[k], requests[k])
                kept[k] = RunStore.open(runs[k])
        except (RunError, InputError) as error:
            if isinstance(error, ConfigError):
                raise
            wrong[k] = str(error)
    return kept


def _tell_of_other_runs(path: str, runs: Mapping[int, str]) -> None:
    """Warn of runs of an earlier, longer series, which are neither in the table nor removed."""
    numbers = [int(found[1]) for name in os.listdir(path) if (found := RUN.fullmatch(name))]
    if others := sorted(set(numbers) - runs.keys()):
        names = ", ".join(f"{k:03}" for k in others)
        log.warning("%s holds results of an earlier series that are not of this one, and are left there: %s", path, names)


@contextmanager
def _saying_how_to_go_on(rows: Mapping[int, Row], path: str) -> Iterator[None]:
    """An interrupt says how far the series is, in place of how one of its runs goes on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        done = sum(row.state in ("registered", "kept") for row in rows.values())
        how = (
            f"{done} of {counted(len(rows) - 1, 'image')} are registered, as {join(path, TABLE)} says; the same command, without "
            "--overwrite, goes on."
        )
        error.__notes__ = [how]
        if not getattr(error, "notes_are_said", False):
            with shown():
                log.warning("%s", how)
        raise


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


def _registered(
    rows: Mapping[int, Row],
    number: int,
    path: str,
    request: Request,
    wrong: str | None,
    given: Mapping[str, Any],
    overwrite: bool,
) -> Row:
    """The row of an image that is registered now, or was. path: of its run;  wrong: why it cannot be."""
    row = rows[number]
    fixed = rows[row.fixed or 0]
    if fixed.state in ("failed", "left out"):
        why = "could not be registered" if fixed.state == "failed" else "was left out"
        return _without_run(row, path, "left out", f"image {fixed.number}, to which it would be registered, {why}")
    if wrong is not None:
        return _without_run(row, path, "failed", wrong)
    if row.state == "kept":
        return _with(row, chain_verdict=_worse(row.verdict, fixed))
    try:
        resume = not overwrite and exists(path)
        images = request.fixed, request.moving
        run = register(*images, request.config, output=path, overwrite=overwrite, resume=resume, **given).store
    except (RunError, InputError) as error:
        if isinstance(error, ConfigError):
            raise
        return _without_run(row, path, "failed", str(error))
    return _measured(row, rows, path, run, "registered")


def _without_run(row: Row, path: str, state: str, error: str) -> Row:
    """The row of an image without a result; one that can be continued is named."""
    return Row(row.number, row.image, row.fixed, state, run=path if exists(path) else "", error=error)


def _measured(row: Row, rows: Mapping[int, Row], path: str, run: RunStore, state: str) -> Row:
    """The row of an image with what its complete run says."""
    report = run.provenance
    metrics = report.get("metrics", {})
    measures = {f"correlation_{k}": float(metrics[k]["ncc"]) for k in ("before", "after") if k in metrics}
    measures["folded_percent"] = float(metrics.get("jacobian", {}).get("folded_percent", 0.0))
    measures["seconds"] = float(report.get("seconds", {}).get("total", 0.0))
    verdict = _verdict_of(report)
    worse = _worse(verdict, rows[row.fixed or 0])
    return _with(row, state=state, run=path, verdict=verdict, chain_verdict=worse, measures=measures)


def _worse(verdict: str, fixed: Row) -> str:
    """Of a verdict and of those that bring the image to the reference that is registered to."""
    return max(verdict, fixed.chain_verdict, key=VERDICTS.index)


def _verdict_of(report: Mapping[str, Any]) -> str:
    return str((report.get("verdict") or {}).get("status", ""))


def _with(row: Row, **values: Any) -> Row:
    return Row(**{**row.__dict__, **values})


def _complete(path: str) -> bool:
    return exists(path) and RunStore.attach(path).complete


def _resampled(
    rows: Mapping[int, Row], number: int, path: str, reference: int, device: DeviceName, overwrite: bool, fill: Fill
) -> Row:
    """The row with the address of the image on the grid of the reference; what was there of a kept run is kept."""
    row, target = rows[number], _moved_at(path, number)
    if row.state != "kept" or overwrite or not exists(target):
        image = without_key(row.image, "channel")
        like = without_key(rows[reference].image, "channel")
        grid = open_stack(like).grid
        try:
            apply(_to_reference(rows, number), image, target, like=grid, device=device, overwrite=True, fill=fill)
        except DaskregError as error:
            return _with(row, state="failed", error=str(error))
    return _with(row, moved=target)


def _moved_at(path: str, number: int) -> str:
    return join(path, f"moved/{number:03}.ome.zarr")


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
