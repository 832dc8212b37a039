"""``daskreg compare``: other programs on the pair of a run, in environments of their own, measured as the run is."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from daskreg import machine
from daskreg.arguments import checked_arguments
from daskreg.config import Config
from daskreg.deferred import DeferredModule
from daskreg.errors import ConfigError, DaskregError, OutputError, OutputExists, counted, require_known, require_number
from daskreg.html import Printable
from daskreg.lazy.load import load_transform
from daskreg.lazy.transform import Transform
from daskreg.storage import RunStore, Volume, is_remote, write_image
from daskreg.storage.fs.address import parse_address
from daskreg.storage.fs.files import replace_text
from daskreg.storage.images import ImageSource, open_on
from daskreg.storage.recorded_images import recorded_image
from daskreg.storage.runs.layout import DISPLACEMENT
from daskreg.transforms.link import Link
from daskreg.workflows.contenders import Contender, Pair, aligned, markdown, measured, table_text
from daskreg.workflows.evaluate import require_both_labels
from daskreg.workflows.programs.inside import ProgramJob
from daskreg.workflows.programs.process import ProcessFailed, watched
from daskreg.workflows.programs.start import PROGRAMS, find_environment, registration_seconds, start
from daskreg.workflows.recorded import run_of
from daskreg.workflows.result import Result

if TYPE_CHECKING:
    import yaml
else:
    yaml = DeferredModule("yaml")

log = logging.getLogger("daskreg")
TABLES = ("compare.csv", "compare.json", "compare.md")
UNIT = "millimeter"  # what programs of ITK take every world for
RIGID = ("moments", "search", "rigid")  # stages without scales and shears


@dataclass(frozen=True, repr=False)
class ProgramComparison(Printable):
    """Programs on one pair: a row each, and where it was measured. path: the folder of the tables."""

    path: str
    rows: tuple[Contender, ...]
    machine: Mapping[str, Any]

    def lines(self) -> list[str]:
        """For people."""
        return aligned(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"machine": dict(self.machine), "programs": [row.as_dict() for row in self.rows]}


@checked_arguments()
def compare(
    run: str | Path | RunStore | Result,
    against: Sequence[str] | str,
    output: str | Path,
    *,
    environments: Mapping[str, str | Path] | None = None,
    fixed: ImageSource | Volume | None = None,
    moving: ImageSource | Volume | None = None,
    fixed_labels: ImageSource | Volume | None = None,
    moving_labels: ImageSource | Volume | None = None,
    again: bool = False,
    threads: int | None = None,
    time_limit: float | None = None,
    keep: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] = log.info,
) -> ProgramComparison:
    """Run other programs on the pair of a run, one after the other, and measure all by the same functions.

    Parameters
    ----------
    run
        A complete run. Programs get its images as NIfTI, float32; one without a deformable stage is compared with linear stages.
    against
        greedy, greedy_tuned, ants, ants_cc, fireants, fireants_cuda, elastix, niftyreg. One that is missing or fails has a row
        with a sentence, and the others go on.
    output
        A folder for ``compare.csv``, ``compare.json`` and ``compare.md``, written anew after each program.
    environments
        Where programs are, by name: an interpreter, the folder of an environment, or the binary of greedy or NiftyReg. By default
        the environment of this process, then the PATH.
    fixed, moving
        Instead of the images that the run has recorded.
    fixed_labels, moving_labels
        Label images of any grid, for Dice.
    again
        Run daskreg again too, with the configuration of the run, here and in a process of its own; its time and memory are else
        those that the run has recorded, wherever it was.
    threads
        Of each program; all cores by default.
    time_limit
        Seconds after which a program is ended.
    keep
        Keep what the programs write, below the folder.
    tell
        Called with a line a program.

    Raises InputError in all its forms, OutputExists, OutputError.
    """
    against = [name.strip() for name in against.split(",")] if isinstance(against, str) else against
    for name in (*against, *(environments or {})):
        require_known("program", name, list(PROGRAMS))
    if not against:
        raise ConfigError(f"no program was named; choose some of {', '.join(PROGRAMS)}.")
    require_both_labels(fixed_labels, moving_labels)
    if time_limit is not None:
        require_number("time_limit", time_limit, 1, 1e9)
    cores = machine.cores().value if threads is None else threads
    require_number("threads", cores, 1, 1024, whole=True)
    store = run_of(run)
    if store is None:
        raise ConfigError(f"{run!r} is no run; give the address of a RUN.zarr.")
    sources = _sources(store, fixed, moving)
    sides = (store.fixed_grid, "fixed", store.moving_grid), (store.moving_grid, "moving", store.fixed_grid)
    images = open_on(sources[0], *sides[0]), open_on(sources[1], *sides[1])
    given = zip((fixed_labels, moving_labels), sides, strict=True)
    labels = (None if image is None else open_on(image, *side) for image, side in given)
    pair = Pair.seen(_config(store), *images, *labels)
    folder = _folder(output, overwrite)
    table = _Table(folder, _machine(cores), tell)
    table.add(_before(pair))
    table.add(_recorded(store, pair))
    with _work(folder, keep) as work:
        if again:
            table.add(_again(store, pair, sources, work, cores, time_limit))
        job = _prepared(store, images, work, cores)
        for name in against:
            table.add(_measured(name, job, (environments or {}).get(name), pair, time_limit))
    return table.comparison()


class _Table:
    """Rows, which are written after each."""

    def __init__(self, folder: str, where: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.folder, self.where, self.tell, self.rows = folder, where, tell, list[Contender]()

    def add(self, row: Contender) -> None:
        self.rows.append(row)
        found = self.comparison()
        page = f"{markdown(self.rows)}\n\n{_place(self.where)}\n"
        texts = table_text(self.rows), json.dumps(found.as_dict(), indent=1) + "\n", page
        for name, text in zip(TABLES, texts, strict=True):
            replace_text(f"{self.folder}/{name}", text)
        self.tell(f"{row.program}: {row.error or _said(row)}")

    def comparison(self) -> ProgramComparison:
        return ProgramComparison(self.folder, tuple(self.rows), self.where)


def _said(row: Contender) -> str:
    seconds = "" if np.isnan(row.seconds) else f", {row.seconds:.1f} s"
    return f"{row.state}{'' if row.measures is None else f', correlation {row.measures.correlation:.4f}'}{seconds}"


def _sources(store: RunStore, fixed: Any, moving: Any) -> tuple[Any, Any]:
    found = []
    for role, given in (("fixed", fixed), ("moving", moving)):
        source = recorded_image(store, role) if given is None else given
        if source is None:
            raise ConfigError(f"the {role} image of {store.path} was an array in memory; give it with --{role} ({role}=).")
        found.append(source)
    return found[0], found[1]


def _config(store: RunStore) -> Config:
    """Of the run; that of the defaults where it has recorded none."""
    tree = store.provenance.get("config")
    return Config.parse(tree) if tree else Config.of_stages(["affine"])


def _folder(output: str | Path, overwrite: bool) -> str:
    path = parse_address(output).path
    if is_remote(path):
        raise OutputError(f"{path}: programs write to local disks; give a local folder.")
    there = [name for name in TABLES if os.path.exists(os.path.join(path, name))]
    if there and not overwrite:
        raise OutputExists(f"{path} has {there[0]} already; use --overwrite (overwrite=True), or choose another folder.")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made ({error.strerror}); choose another folder.") from None
    return path


@contextmanager
def _work(folder: str, keep: bool) -> Iterator[Path]:
    """A folder for what programs write; greedy takes no path with blanks."""
    if keep:
        place = Path(folder, "work").absolute()
        place.mkdir(exist_ok=True)
        yield place
        return
    beside = None if len(os.path.abspath(folder).split()) > 1 else folder
    with tempfile.TemporaryDirectory(prefix="work-", dir=beside) as temporary:
        yield Path(temporary).absolute()


def _before(pair: Pair) -> Contender:
    """The images as their headers place them."""
    identity = Transform((Link(np.eye(4)),), pair.grid.unit, pair.grid, pair.moving.grid)
    return Contender("headers", "start", measured(pair, identity))


def _recorded(store: RunStore, pair: Pair) -> Contender:
    """The run, with the time and the memory that it has recorded."""
    record = store.provenance
    host = record.get("machine", {})
    ranks = record.get("ranks") or [host]
    return Contender(
        "daskreg",
        "recorded",
        measured(pair, load_transform(store)),
        float(record.get("seconds", {}).get("total", np.nan)),
        float(sum(r.get("peak_bytes", np.nan) for r in ranks)),
        f"daskreg {record.get('versions', {}).get('daskreg', '')}",
        f"{store.path}, {counted(len(ranks), 'rank')} of {host.get('threads', '?')} threads on {host.get('host', '?')}",
    )


def _again(store: RunStore, pair: Pair, sources: tuple[Any, Any], work: Path, threads: int, limit: float | None) -> Contender:
    """Daskreg itself, as the others: a process of its own, here."""
    if not all(isinstance(s, str | Path) for s in sources):
        return Contender("daskreg again", "failed", error="an image is in memory, and a process of its own cannot read it.")
    recipe, path = work / "recipe.yaml", work / "again.zarr"
    recipe.write_text(yaml.safe_dump(store.provenance["config"]))
    words = [*map(str, sources), "--config", str(recipe), "-o", str(path), "--overwrite"]
    variables = {name: str(threads) for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS")}
    try:
        found = watched([sys.executable, "-m", "daskreg", "--quiet", "register", *words], work / "again.log", variables, limit)
        numbers = measured(pair, load_transform(path))
        version = RunStore.open(path).provenance["versions"]["daskreg"]
    except (ProcessFailed, DaskregError) as error:
        return Contender("daskreg again", "failed", error=_sentence(error))
    return Contender("daskreg again", "measured", numbers, found.seconds, found.peak_rss, f"daskreg {version}")


def _prepared(store: RunStore, images: tuple[Volume, Volume], work: Path, threads: int) -> ProgramJob:
    """The images as NIfTI, and what programs are asked for: the kinds of stages that the run has."""
    fixed, moving = (str(work / f"{role}.nii") for role in ("fixed", "moving"))
    for path, image in zip((fixed, moving), images, strict=True):
        grid = replace(image.grid.to_unit(images[0].grid.unit), unit=UNIT)
        write_image(path, image.data.astype(np.float32), grid, overwrite=True)
    stages = [s.get("stage") for s in store.provenance.get("config", {}).get("stages", [])]
    dof = 6 if stages and all(s in RIGID for s in stages) else 12
    deformable = store.has(DISPLACEMENT)
    return ProgramJob(fixed, moving, str(work), threads=threads, dof=dof, deformable=deformable, resample=False, warp=True)


def _measured(name: str, job: ProgramJob, given: str | Path | None, pair: Pair, limit: float | None) -> Contender:
    """A program's row, whatever happens to it."""
    program = PROGRAMS[name]
    try:
        where = find_environment(name, given)
    except ConfigError as error:
        return Contender(name, "missing", settings=program.about, error=_sentence(error))
    mine = replace(job, work=str(Path(job.work, name)), extra=dict(program.extra), device=program.device)
    try:
        found = start(program.inside, mine, where, limit)
        phi = replace(load_transform(found["warp"]), fixed=replace(pair.grid, unit=UNIT))
        numbers = measured(pair.in_unit(pair.grid.unit, UNIT), phi)
    except DaskregError as error:
        return Contender(name, "failed", settings=program.about, error=_sentence(error))
    seconds, settings = round(registration_seconds(found), 2), found.get("settings", program.about)
    return Contender(name, "measured", numbers, seconds, found["peak_rss"], found["version"], settings)


def _sentence(error: BaseException) -> str:
    """Without the log behind it."""
    return error.sentence if isinstance(error, ProcessFailed) else str(error).partition("\n")[0]


def _machine(threads: int) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "processor": _processor(),
        "cores": machine.cores().value,
        "memory_bytes": int(psutil.virtual_memory().total),
        "system": platform.platform(),
        "threads": threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _place(where: Mapping[str, Any]) -> str:
    memory = where["memory_bytes"] / 2**30
    cores, threads = counted(where["cores"], "core"), counted(where["threads"], "thread")
    return f"{where['processor']}, {cores}, {memory:.0f} GiB, {threads}, {where['date']}"
