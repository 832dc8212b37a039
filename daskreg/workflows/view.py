"""``daskreg view``: the fixed image and images through a transform, in any viewer of OME-Zarr, computed where it looks."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from ipaddress import ip_address
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from daskreg.arguments import checked_arguments
from daskreg.config import DeviceName
from daskreg.errors import ConfigError, InputError, NotFound, counted, require_known, require_number
from daskreg.grid import UNITS, Grid
from daskreg.html import Printable, table
from daskreg.lazy.byte_cache import ByteCache
from daskreg.lazy.coarse_levels import CoarseLevel, run_field_levels
from daskreg.lazy.device import local_device
from daskreg.lazy.load import TransformLike, load_transform
from daskreg.lazy.resample import Interpolation, warn_of_other_grid, warn_without_overlap
from daskreg.lazy.transform import Transform
from daskreg.lazy.virtual_image import Coarse, ResampledSource, Sampling, VirtualImage, virtual_image
from daskreg.storage import RunStore, Stack, Volume, open_stack
from daskreg.storage.axes import SPACE
from daskreg.storage.fill import Fill, describe_fill, fill_of, require_fill
from daskreg.storage.fs.address import parse_address, with_key, without_key
from daskreg.storage.images import ImageSource, grid_of_array, is_bare, open_on, open_record
from daskreg.storage.recorded_images import recorded_image
from daskreg.storage.runs.layout import MOVED
from daskreg.storage.zarr.virtual import VERSIONS
from daskreg.workflows.image_server import ImageServer, Site
from daskreg.workflows.recorded import run_of
from daskreg.workflows.resources import parse_memory

log = logging.getLogger("daskreg")
NEUROGLANCER = "https://neuroglancer-demo.appspot.com/#!"
COLORS = {"fixed": "00FF00", "moved": "FF00FF"}
CACHE = "1GB"
PANEL = 300  # pixels of Neuroglancer that the longest axis takes


@dataclass(frozen=True, eq=False, repr=False)
class ServedImages(Printable):
    """Images that are served until ``close`` is called, or the process ends.

    url: of a page with all links;  images: by name, those that are served
    """

    url: str
    images: Mapping[str, VirtualImage]
    _server: ImageServer = field(repr=False)

    def address(self, name: str = "moved", version: str = "0.4") -> str:
        """The URL of an image, as OME-Zarr 0.4 (Zarr v2) or 0.5 (Zarr v3). Raises ConfigError for another name or version."""
        require_known("image", name, list(self.images))
        require_known("version", version, VERSIONS)
        return f"{self.url}{version}/{_store(name)}"

    @property
    def neuroglancer(self) -> str:
        """A link that shows all images over each other: Neuroglancer is a page of Google's, the voxels stay on this machine."""
        layers = [_layer(name, image, self.address(name)) for name, image in self.images.items()]
        state = {**_axes(next(iter(self.images.values())).grid), "layers": layers, "layout": "4panel", "showSlices": False}
        return NEUROGLANCER + quote(json.dumps(state, separators=(",", ":")), safe="")

    @property
    def napari(self) -> str:
        """The command that opens all images in napari (with the plugin napari-ome-zarr)."""
        return f"napari --plugin napari-ome-zarr {' '.join(shlex.quote(self.address(name)) for name in self.images)}"

    @property
    def closed(self) -> bool:
        """Whether nothing is served any more."""
        return self._server.closed.is_set()

    def __repr__(self) -> str:
        return f"ServedImages({self.url}, {' and '.join(self.images)}, {'closed' if self.closed else 'served until close()'})"

    def lines(self) -> list[str]:
        """For people."""
        served = [f"{name:<12} {self.address(name)}  ({_summary(image)})" for name, image in self.images.items()]
        newer = [f"{'':<12} {self.address(name, '0.5')}  (as OME-Zarr 0.5)" for name in self.images]
        return [
            *(line for pair in zip(served, newer, strict=True) for line in pair),
            f"{'page':<12} {self.url}",
            f"{'napari':<12} {self.napari}",
            f"{'Fiji':<12} Plugins > BigDataViewer > HDF5/N5/Zarr/OME-NGFF Viewer, with one of the addresses",
            f"{'neuroglancer':<12} {self.neuroglancer}",
        ]

    def _repr_html_(self) -> str:
        title = "View: closed" if self.closed else "View: served until close()"
        links = f'<div><a href="{escape(self.neuroglancer)}" target="_blank">open in Neuroglancer</a></div>'
        more = f"<div>napari: <code>{escape(self.napari)}</code></div>"
        rows = [(f"{name}, OME-Zarr {v}", self.address(name, v)) for name in self.images for v in VERSIONS]
        return table(title, [*rows, *((name, _summary(image)) for name, image in self.images.items())], links + more)

    def wait(self) -> None:
        """Until it is closed, or a signal comes."""
        while not self._server.closed.wait(1.0):
            pass

    def close(self) -> None:
        """Stop serving. Viewers keep what they have loaded."""
        self._server.close()

    def __enter__(self) -> ServedImages:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@checked_arguments()
def view(
    transform: TransformLike,
    image: ImageSource | Volume | None = None,
    *,
    fixed: ImageSource | Volume | bool = True,
    like: ImageSource | Volume | Grid | None = None,
    interpolation: Interpolation = "linear",
    fill: Fill = None,
    coarse: Coarse = "auto",
    cache: int | str = CACHE,
    device: DeviceName = "auto",
    host: str = "127.0.0.1",
    port: int = 0,
) -> ServedImages:
    """Serve ``image(phi(x))``, and the fixed image beside it, to viewers on this machine; nothing is written.

    Parameters
    ----------
    transform
        A run or its Result, or any transform, which then needs ``image``.
    image
        An image in the space of the moving one; by default the moving image of the run, all channels; where that was an array in
        memory, the moved image that the run keeps.
    fixed
        The fixed image, by default that of the run, all channels; False for none.
    like, interpolation, fill
        As for ``apply``, whose values level 0 has, bit for bit.
    coarse
        means: coarser levels are those that ``apply`` writes, means (of labels: modes) of the level before; the coarsest one
        needs the whole image resampled. sampled: each is sampled at its own voxels, from levels of the moving image and of the
        displacement that are about as coarse. auto: means up to 2^26 voxels, which take some seconds.
    cache
        Bytes of computed chunks that are kept, such as "4GB".
    device
        cpu, cuda, or auto: a GPU of this process where there is one.
    host, port
        Where to listen: by default only on this machine, on a free port.

    Raises InputError in all its forms.
    """
    require_known("coarse", coarse, get_args(Coarse))
    require_number("port", port, 0, 65535, whole=True)
    store = run_of(transform)
    phi = load_transform(transform)
    found = _moving(store, phi, image)
    stack = found.stack
    grid = phi.output_grid(stack, like)
    warn_without_overlap(found.links, phi.unit, grid, stack)
    require_fill(fill, stack.dtype, stack.name)
    value = fill_of(stack.data, fill)
    log.info("%s", describe_fill(stack.name, fill, value))
    how = Sampling(interpolation, value, local_device(device), coarse)
    require_known("interpolation", interpolation, get_args(Interpolation))
    kept = ByteCache(parse_memory(cache) or 0)
    images = {"moved": virtual_image("moved", found, grid, how, kept)}
    beside = _fixed(store, phi, fixed)
    if beside is not None:
        its = replace(how, interpolation=_kind(how), fill=fill_of(beside.stack.data, None))
        images = {"fixed": virtual_image("fixed", beside, grid, its, kept), **images}
    return _serve(images, host, port)


def _serve(images: Mapping[str, VirtualImage], host: str, port: int) -> ServedImages:
    server = ImageServer(host, port)
    try:
        made = ServedImages(f"{server.url}/", images, server)
        served = {_store(name): (image, image.attributes(COLORS[name])) for name, image in images.items()}
        if not _is_loopback(host):
            log.warning("images are served on %s, not encrypted: who reads the network, or has the address, sees them", host)
        server.start(Site(served, lambda: _page(made)))
    except BaseException:
        server.close()
        raise
    return made


def _kind(how: Sampling) -> Interpolation:
    """How the fixed image is resampled where its grid is another: it is no label map because the other one is."""
    return "cubic" if how.interpolation == "cubic" else "linear"


def _moving(store: RunStore | None, phi: Transform, image: ImageSource | Volume | None) -> ResampledSource:
    """What goes through the transform."""
    fields = None if store is None else run_field_levels(store)
    if image is not None:
        return _through(phi, _opened(image, phi.moving, "moving", phi.fixed), fields)
    why = "it was an array in memory"
    try:
        recorded = None if store is None else _all_channels(recorded_image(store, "moving"))
        if recorded is not None:
            return _through(phi, _opened(recorded), fields)
    except (NotFound, ConfigError) as error:
        why = str(error).rstrip(".")
    if store is None or not store.has(MOVED):
        raise ConfigError("no image was named, and the transform knows none: daskreg view TRANSFORM IMAGE.")
    log.warning("the moving image cannot be resampled (%s); the moved image that %s keeps is shown", why, store.path)
    return replace(_opened(f"{store.path}/{MOVED}"), unit=phi.unit)


def _through(phi: Transform, opened: ResampledSource, fields: Sequence[CoarseLevel] | None) -> ResampledSource:
    warn_of_other_grid(opened.stack, "moving", phi.grids)
    return replace(opened, links=phi.links, unit=phi.unit, fields=fields)


def _opened(
    image: ImageSource | Volume, grid: Grid | None = None, side: str = "moving", other: Grid | None = None
) -> ResampledSource:
    """An image, all channels, and its coarser levels. The other arguments are those of ``grid_of_array``."""
    if isinstance(image, Volume) or is_bare(image):
        return ResampledSource(open_stack(open_on(image, grid, side, other)))
    stack = open_stack(image, grid=grid_of_array(image, grid, side, other))
    stored = _coarser(str(image), stack) if isinstance(image, str | Path) else ()
    return ResampledSource(stack, stored=stored)


def _coarser(address: str, finest: Stack) -> tuple[Stack, ...]:
    """The coarser levels of an image as its file has them; the first that cannot be used, and those behind it, are left out."""
    where = parse_address(address)
    levels = open_record(where).levels
    first = next((k for k, level in enumerate(levels) if where.level in (k, level.path)), 0)
    found: list[Stack] = []
    for k in range(first + 1, len(levels)):
        try:
            stack = open_stack(with_key(without_key(address, "level"), "level", k))
        except InputError as error:
            log.warning("level %d of %s is not used: %s", k, finest.name, error)
            break
        if stack.data.shape[:-3] != finest.data.shape[:-3]:
            break
        found.append(stack)
    return tuple(found)


def _fixed(store: RunStore | None, phi: Transform, given: ImageSource | Volume | bool) -> ResampledSource | None:
    """What is shown beside it, None for nothing."""
    if given is False:
        return None
    try:
        recorded = given if given is not True else None if store is None else _all_channels(recorded_image(store, "fixed"))
        opened = None if recorded is None else _opened(recorded, phi.fixed, "fixed", phi.moving)
    except InputError as error:
        if given is not True:
            raise
        log.warning("the fixed image is not shown: %s", error)
        return None
    return None if opened is None else replace(opened, unit=phi.unit)


def _all_channels(address: str | None) -> str | None:
    return None if address is None else without_key(address, "channel")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _store(name: str) -> str:
    return f"{name}.ome.zarr"


def _summary(image: VirtualImage) -> str:
    lead = " x ".join(f"{n} {a.name}" for n, a in zip(image.lengths, image.lead, strict=True))
    kind = "means" if image.means else "sampled"
    return f"{f'{lead} x ' if lead else ''}{image.grid.summary()}, {image.dtype}, {counted(len(image.factors), 'level')}, {kind}"


def _axes(grid: Grid) -> dict[str, object]:
    """Axes of Neuroglancer, x to the right, and a scale at which all of the grid is seen."""
    metres = [s if grid.unit is None else s * UNITS[grid.unit] for s in grid.spacing]
    sizes = {n: [s, "" if grid.unit is None else "m"] for n, s in zip(SPACE[::-1], metres[::-1], strict=True)}
    longest = max(n * s for n, s in zip(grid.shape, grid.spacing, strict=True)) / grid.spacing[2]
    return {"dimensions": sizes, "displayDimensions": list(SPACE[::-1]), "crossSectionScale": longest / PANEL}


def _layer(name: str, image: VirtualImage, address: str) -> dict[str, object]:
    """A layer of Neuroglancer."""
    low, high = image.window()
    color = ", ".join(f"{int(COLORS[name][k : k + 2], 16) / 255:g}" for k in (0, 2, 4))
    whole = image.dtype.kind in "iu"
    channel = next((a.name for a in image.lead if a.kind == "channel"), None)
    first = {} if channel is None else {"localDimensions": {f"{channel}'": [1, ""]}, "localPosition": [0]}
    return {
        **first,
        "type": "image",
        "name": name,
        "source": f"zarr://{address}",
        "blend": "additive",
        "opacity": 1,
        "shader": f"#uicontrol invlerp normalized\nvoid main() {{ emitRGB(vec3({color}) * normalized()); }}\n",
        "shaderControls": {"normalized": {"range": [round(low), round(high)] if whole else [low, high]}},
    }


def _page(made: ServedImages) -> str:
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>daskreg view</title></head>'
    return f"{head}<body>{made._repr_html_()}</body></html>"
