"""What formats in HDF5 share: telling such a file, and refusing what is in another one, which no file may choose to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskreg.deferred import DeferredModule
from daskreg.errors import Unreadable
from daskreg.storage.format import first_bytes

if TYPE_CHECKING:
    import h5py
else:
    h5py = DeferredModule("h5py")

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: str) -> bool:
    """By the first bytes."""
    return first_bytes(path, len(SIGNATURE)) == SIGNATURE


def has_external_data(member: Any) -> bool:
    """Whether a dataset's numbers are in other files."""
    return isinstance(member, h5py.Dataset) and (bool(member.external) or member.is_virtual)


def own_member(path: str, group: Any, place: str) -> Any:
    """What is at a place below a group, None where nothing is. Raises Unreadable, before it is opened, for what is elsewhere."""
    found = group
    for name in place.split("/"):
        if not isinstance(found, h5py.Group) or found.get(name, getlink=True) is None:
            return None
        found = None if isinstance(found.get(name, getlink=True), h5py.ExternalLink) else found.get(name)
        if found is None or found.file != group.file or has_external_data(found):
            raise Unreadable(f"{path}: {place!r} is a link to another file, or stored in one; copy everything into one file.")
    return found
