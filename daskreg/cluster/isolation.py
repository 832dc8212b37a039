"""What keeps other users of this machine out of a cluster that daskreg starts.

Dask executes whatever a client, a scheduler or a worker is sent. Connections are therefore authenticated and encrypted by
certificates that exist in the memory of these processes only; HTTP servers listen on this machine's loopback interface, under a
path that cannot be guessed; files are in a folder of mode 700; and modules are not imported from the working directory.
"""

from __future__ import annotations

import datetime
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import dask
from distributed import Scheduler, Worker
from distributed.security import Security
from tornado.web import ErrorHandler

from daskreg.cluster.processes import shared

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = "127.0.0.1:0"  # a free port, for this machine only
VALIDITY, CLOCK_ERROR = datetime.timedelta(days=365), datetime.timedelta(minutes=5)


def temporary_security() -> Security:
    """Self-signed credentials for one cluster, as ``Security.temporary``, with a key on an elliptic curve: faster than RSA."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    private = key.private_bytes(*formats).decode()
    certificate = _self_signed(key).public_bytes(serialization.Encoding.PEM).decode()
    roles = {f"tls_{role}_{part}": text for role in ("client", "scheduler", "worker")
             for part, text in (("key", private), ("cert", certificate))}  # fmt: skip
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "daskreg")])
    now = datetime.datetime.now(tz=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - CLOCK_ERROR).not_valid_after(now + VALIDITY)
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())


def secret_prefix() -> str:
    """A path below which HTTP servers answer; who does not know it gets 404."""
    return f"/{secrets.token_urlsafe(16)}"


@contextmanager
def private_configuration() -> Iterator[None]:
    """Dask's temporary folder is one that only this user can open, removed in the end; HTTP servers of workers show nothing.

    Dask would use ``/tmp/dask-scratch-space`` even if another user has made it, and imports modules from there.
    """
    with (
        tempfile.TemporaryDirectory(prefix="daskreg-", ignore_cleanup_errors=True) as folder,
        dask.config.set({"temporary-directory": folder, "distributed.worker.http.routes": []}),
    ):
        yield


def safe_path() -> AbstractContextManager[None]:
    """Python processes that start meanwhile do not import from the working directory: somebody else may write there."""
    return shared("PYTHONSAFEPATH", "1")


class ClosedScheduler(Scheduler):
    """A scheduler whose dashboard answers below its prefix only; Dask's tells everybody the prefix.

    The dashboard is made when somebody first asks for it: importing Bokeh takes as long as a small registration.
    """

    def __init__(self, *arguments: Any, http_prefix: str = "/", dashboard: bool = True, **options: Any) -> None:
        self.prefix, self._dashboard_wanted = http_prefix.strip("/"), dashboard
        super().__init__(*arguments, http_prefix=http_prefix, dashboard=False, **options)

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Called by Dask, before anything can connect."""
        start: Any = super().start_http_server
        start(*arguments, **options)
        application: Any = self.http_application
        application.find_handler = _Guard(application, self.prefix, self._make_dashboard)

    def _make_dashboard(self) -> None:
        """Add its pages, on the thread of the HTTP server."""
        if self._dashboard_wanted:
            self._dashboard_wanted = False
            with suppress(ImportError):  # no Bokeh
                pages = import_module("distributed.dashboard.scheduler")
                pages.connect(self.http_application, self.http_server, self, prefix=f"/{self.prefix}")


class _Guard:
    """Finds the handler of a request below a prefix, after ``prepare``; of any other one that of an error."""

    def __init__(self, application: Any, prefix: str, prepare: Callable[[], None]) -> None:
        self.application, self.find, self.prefix, self.prepare = application, application.find_handler, prefix, prepare

    def __call__(self, request: Any, **options: Any) -> Any:
        first = request.path.strip("/").partition("/")[0]
        if secrets.compare_digest(first.encode(), self.prefix.encode()):
            self.prepare()
            return self.find(request, **options)
        return self.application.get_handler_delegate(request, ErrorHandler, {"status_code": 404})


def closed(cluster: Any) -> Any:
    """A class of clusters of this machine, with such a scheduler."""

    async def _start(self: Any) -> Any:
        self.scheduler_spec["cls"] = ClosedScheduler
        return await cluster._start(self)

    return type("ClosedCluster", (cluster,), {"_start": _start})


class LoopbackWorker(Worker):
    """A worker in this process, whose HTTP server is for this machine only; Dask's listens on all interfaces."""

    def start_http_server(self, routes: Any, dashboard_address: Any, *arguments: Any, **options: Any) -> None:
        """Called by Dask."""
        start: Any = super().start_http_server
        start(routes, dashboard_address or LOOPBACK, *arguments, **options)
