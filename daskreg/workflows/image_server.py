"""Virtual images over HTTP: an OME-Zarr store each, in two versions, below a path that nobody can guess.

No path is ever looked for on a disk: a request is a key of a metadata document, or of a chunk.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from daskreg import machine
from daskreg.errors import ConfigError, DaskregError
from daskreg.lazy.virtual_image import VirtualImage
from daskreg.storage.zarr.virtual import VERSIONS, documents

log = logging.getLogger("daskreg")
TOKEN_BYTES = 16
MOST_THREADS = 8  # that compute chunks
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Body:
    """What is answered: a type, a length, and the bytes, which may take long to make."""

    kind: str
    length: int
    read: Callable[[], bytes]


class Site:
    """Everything that can be asked for, by path below the token: a page, and for each image and version its store."""

    def __init__(self, images: Mapping[str, tuple[VirtualImage, Mapping[str, Any]]], page: Callable[[], str]) -> None:
        """images: by path of the store, with the attributes of their groups."""
        self.images, self._page = {path: image for path, (image, _) in images.items()}, page
        self._documents = {
            f"{version}/{path}/{key}": text
            for path, (image, attributes) in images.items()
            for version in VERSIONS
            for key, text in documents(version, attributes, image.arrays).items()
        }

    def find(self, path: str) -> Body | None:
        """What is at a path, None where nothing is."""
        if path == "":
            page = self._page().encode()
            return Body("text/html; charset=utf-8", len(page), lambda: page)
        if (text := self._documents.get(path)) is not None:
            return Body("application/json", len(text), lambda: text)
        return self._chunk(path)

    def _chunk(self, path: str) -> Body | None:
        version, _, rest = path.partition("/")
        store, _, key = rest.partition("/")
        level, _, place = key.partition("/")
        image = self.images.get(store)
        array = None if image is None or version not in VERSIONS else image.arrays.get(level)
        index = None if array is None else array.index(version, place)
        if image is None or array is None or index is None:
            return None
        return Body("application/octet-stream", array.chunk_bytes, lambda: _little_endian(image, int(level), index))


def _little_endian(image: VirtualImage, level: int, index: tuple[int, ...]) -> bytes:
    return image.chunk(level, index).astype(image.dtype.newbyteorder("<"), copy=False).tobytes()


class ImageHandler(RequestHandler):
    """GET, HEAD with a range of bytes, and the questions that browsers ask before those of pages of other servers."""

    def initialize(self, site: Site, pool: ThreadPoolExecutor) -> None:
        """Called by Tornado."""
        self.site, self.pool, self.gone = site, pool, False

    def set_default_headers(self) -> None:
        """Pages of any server may read this one if they know its path: viewers are such pages."""
        self.clear_header("Server")
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
        self.set_header("Access-Control-Allow-Headers", "Range, Content-Type, If-None-Match, Cache-Control")
        self.set_header("Access-Control-Expose-Headers", "Content-Length, Content-Range, Accept-Ranges, ETag")
        self.set_header("Access-Control-Allow-Private-Network", "true")
        self.set_header("Access-Control-Max-Age", "86400")

    def compute_etag(self) -> None:
        """None: a digest of every chunk would be for nothing."""

    def on_connection_close(self) -> None:
        """Viewers close a connection when a chunk is no longer looked at."""
        self.gone = True

    async def options(self, _: str = "") -> None:
        """No content: the headers are all."""
        self.set_status(204)
        await self.finish()

    async def get(self, path: str = "") -> None:
        """A document, a chunk, or a range of its bytes."""
        await self._answer(path, head=False)

    async def head(self, path: str = "") -> None:
        """The length; nothing is computed."""
        await self._answer(path, head=True)

    async def _answer(self, path: str, head: bool) -> None:
        body = self.site.find(path)
        if body is None:
            raise HTTPError(404, reason="Not Found")
        start, stop = self._range(body.length)
        self.set_header("Content-Type", body.kind)
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("Content-Length", str(stop - start))
        if (start, stop) != (0, body.length):
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{stop - 1}/{body.length}")
        if not head:
            content = await asyncio.get_running_loop().run_in_executor(self.pool, self._read, body)
            self.write(content[start:stop])
        try:
            await self.finish()
        except StreamClosedError:
            self.gone = True

    def _read(self, body: Body) -> bytes:
        """In a thread. Not for a viewer that has gone while others were served."""
        if self.gone:
            raise HTTPError(499, reason="Client Closed Request")
        return body.read()

    def _range(self, length: int) -> tuple[int, int]:
        """The bytes that are asked for: all, where no single range is."""
        found = RANGE.fullmatch(self.request.headers.get("Range", ""))
        if found is None or found.groups() == ("", ""):
            return 0, length
        first, last = found.groups()
        start = int(first) if first else max(0, length - int(last))
        stop = min(length, int(last) + 1) if first and last else length
        if not start < stop:
            self.set_header("Content-Range", f"bytes */{length}")
            raise HTTPError(416, reason="Range Not Satisfiable")
        return start, stop

    def write_error(self, status_code: int, **given: Any) -> None:
        """One sentence."""
        error = given.get("exc_info", (None, None))[1]
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(_sentence(status_code, error))

    def log_exception(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """A line for what could not be computed; none for what is not there."""
        if not isinstance(error, HTTPError):
            log.warning("a chunk could not be served: %s", _sentence(500, error))
            log.debug("its traceback", exc_info=(kind, error, trace) if error is not None else None)


def _sentence(status: int, error: BaseException | None) -> str:
    if status == 404:
        return "There is nothing here; the images are at the addresses that daskreg view has printed.\n"
    if status == 405:
        return "Images are only read here: GET, HEAD or OPTIONS was expected.\n"
    if status == 416:
        return "The range of bytes is outside of the chunk.\n"
    text = " ".join(str(error).split())
    return f"{text if isinstance(error, DaskregError) else f'{type(error).__name__}: {text}'}\n"


class ImageServer:
    """Serves a site from a thread until it is closed."""

    def __init__(self, host: str, port: int, token: str | None = None) -> None:
        """Take the port, 0 for any that is free. Raises ConfigError where it cannot be had."""
        try:
            self._socket = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, UnicodeError, OverflowError) as error:
            raise ConfigError(f"port {port} of {host} cannot be listened on ({error}); choose another --port, or none.") from None
        self._socket.setblocking(False)
        self.token = token or secrets.token_urlsafe(TOKEN_BYTES)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}/{self.token}"
        self.closed = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, site: Site) -> None:
        """Serve from now on."""
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(site, ready),), daemon=True, name="daskreg-view")
        self._thread.start()
        ready.wait()

    async def _serve(self, site: Site, ready: threading.Event) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        pool = ThreadPoolExecutor(min(MOST_THREADS, machine.cores().value + 1), thread_name_prefix="daskreg-view")
        given = {"site": site, "pool": pool}
        routes = [(rf"/{re.escape(self.token)}/(.*)", ImageHandler, given), (r".*", ImageHandler, {**given, "site": NOTHING})]
        application = Application(routes, log_function=_log_request)
        server = HTTPServer(application)
        server.add_socket(self._socket)
        ready.set()
        try:
            await self._end.wait()
        finally:
            server.stop()
            await server.close_all_connections()
            pool.shutdown(wait=False, cancel_futures=True)
            self.closed.set()

    def close(self) -> None:
        """Stop listening, and wait for the thread."""
        if self._loop is None or self._thread is None:
            self._socket.close()
            self.closed.set()
        elif not self.closed.is_set():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()


class _Nothing(Site):
    """What everybody sees who does not know the path."""

    def __init__(self) -> None:
        super().__init__({}, str)

    def find(self, path: str) -> Body | None:
        return None


NOTHING = _Nothing()


def _log_request(handler: RequestHandler) -> None:
    log.debug(
        "%s %s %s %.3f s", handler.get_status(), handler.request.method, handler.request.uri, handler.request.request_time()
    )
