"""Servers of files and of objects on this machine."""

import http.server
import io
import os
import threading
from contextlib import contextmanager


def handler(root, missing):
    """Files of a folder with ranges of bytes; whatever else is asked for, a folder too, is answered with a status."""

    class Files(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *given):
            super().__init__(*given, directory=str(root))

        def send_head(self):
            path = self.translate_path(self.path)
            if not os.path.isfile(path):
                self.send_error(missing)
                return None
            with open(path, "rb") as file:
                content = file.read()
            length, (first, _, last) = len(content), self.headers.get("Range", "").partition("=")[2].partition("-")
            if first or last:
                start = int(first) if first else max(0, length - int(last))
                stop = min(int(last), length - 1) if first and last else length - 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop}/{length}")
                content = content[start : stop + 1]
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return io.BytesIO(content)

        def log_message(self, *given):
            pass

    return Files


@contextmanager
def serving(root, missing=404):
    """The URL of a server of a folder that lists nothing."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(root, missing))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def object_store():
    """The endpoint of an S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
