"""Formats that are not read, and the commands that convert them to one that is."""

from __future__ import annotations

import os

TO_ZARR = "bioformats2raw '{path}' '{stem}.ome.zarr'"  # of Glencoe Software; also in conda-forge
COMMANDS = {
    **dict.fromkeys((".czi", ".nd2", ".lif", ".oib", ".oif", ".oir", ".vsi", ".lsm", ".stk", ".svs", ".mvd2", ".dv"), TO_ZARR),
    **dict.fromkeys((".dcm", ".ima"), "dcm2niix -z y -o . '{folder}'"),
    **dict.fromkeys((".img", ".hdr"), "python -c \"import nibabel as n; n.save(n.load('{path}'), '{stem}.nii.gz')\""),
    ".mnc": "mnc2nii '{path}' '{stem}.nii'",
    **dict.fromkeys((".par", ".rec"), "parrec2nii '{path}'"),
    **dict.fromkeys(
        (".mrc", ".map"), "python -c \"import mrcfile, tifffile as t; t.imwrite('{stem}.tif', mrcfile.read('{path}'))\""
    ),
    ".zst": "unzstd '{path}'",
    ".tar": "tar -xf '{path}'",
}


def conversion(path: str) -> str | None:
    """A sentence with the command that converts a file, None for a format of which none is known."""
    name = path.lower().rstrip("/")
    ending = next((e for e in COMMANDS if name.endswith(e)), None)
    if ending is None:
        return None
    given = {"path": path, "stem": path[: -len(ending)], "folder": os.path.dirname(path) or "."}
    return f"{path} is of a format that is not read here; convert it first: {COMMANDS[ending].format(**given)}"
