"""Files of libraries that write to local disks only, copied to a URL when they are complete."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from daskreg.storage.fs.address import is_remote, join, parent
from daskreg.storage.fs.files import remote_file_system


@contextmanager
def local_place(path: str, *, needed: bool = True) -> Iterator[str]:
    """The path itself or, of a URL, a local one of the same name; what is there when the block ends well is copied.

    needed: whether a local one is asked for.
    """
    if not needed or not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="daskreg-upload-") as folder:
        name = path.rstrip("/").rpartition("/")[2]
        yield os.path.join(folder, name)
        for found in sorted(os.listdir(folder), key=lambda n: n == name):  # what the block was asked to write last
            system, inner = remote_file_system(join(parent(path), found))
            system.put_file(os.path.join(folder, found), inner)
