"""Small stores to open: what archives write, and what goes wrong with them."""

import numpy as np
import zarr

SHAPE = (6, 7, 8)


def voxels(shape=SHAPE, dtype="uint16"):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def axes(names="zyx", unit="micrometer"):
    kinds = {"t": "time", "c": "channel"}
    return [{"name": n, "type": kinds[n]} if n in kinds else {"name": n, "type": "space", "unit": unit} for n in names]


def dataset(path, scale, translation=None):
    steps = [{"type": "scale", "scale": list(scale)}]
    if translation is not None:
        steps.append({"type": "translation", "translation": list(translation)})
    return {"path": path, "coordinateTransformations": steps}


def ome_zarr(path, arrays, datasets, *, version="0.5", axis_list=None, outer=None, omero=None, **array_options):
    """An OME-Zarr group with one array a dataset."""
    image = {"axes": axis_list or axes(), "datasets": datasets, "name": "image"}
    if outer:
        image["coordinateTransformations"] = outer
    ome = {"multiscales": [image]} | ({"omero": omero} if omero else {})
    if version == "0.5":
        attributes, form = {"ome": {"version": "0.5", **ome}}, 3
    else:
        image["version"], attributes, form = version, ome, 2
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    group.attrs.update(attributes)
    for array, entry in zip(arrays, datasets):
        options = {"chunks": tuple(min(4, n) for n in array.shape)} | array_options
        group.create_array(entry["path"], shape=array.shape, dtype=array.dtype, **options)[:] = array
    return str(path)


def simple(path, **options):
    return ome_zarr(path, [voxels()], [dataset("0", (2.0, 1.0, 0.5), (10.0, 20.0, 30.0))], **options)
