"""BigDataViewer: the XML says what the voxels are, HDF5 and N5 hold them."""

import pickle

import h5py
import numpy as np
import pytest

from daskreg.errors import NotFound, Unreadable
from daskreg.storage import open_stack, open_volume
from daskreg.workflows.info import info
from tests.unit.storage.n5 import group, write

SHAPE = (4, 6, 8)
FINE = np.random.default_rng(0).integers(0, 60000, (2, 2, *SHAPE)).astype(np.uint16)  # t, view
CALIBRATION = "1 0 0 0 0 1 0 0 0 0 2 0"
HDF5 = '<ImageLoader format="bdv.hdf5"><hdf5 type="relative">a.h5</hdf5></ImageLoader>'
N5 = '<ImageLoader format="bdv.n5" version="1.0"><n5 type="relative">a.n5</n5></ImageLoader>'


def xml(folder, loader=HDF5, affines=(CALIBRATION,), size="0.5 0.5 1", tiles=(0, 0), times=(0, 1), moved=None):
    """affines: of each view, the last one is applied first."""
    views = "".join(
        f"<ViewSetup><id>{s}</id><name>view {s}</name><size>8 6 4</size><voxelSize><unit>um</unit><size>{size}</size></voxelSize>"
        f"<attributes><channel>{s}</channel><tile>{tile}</tile></attributes></ViewSetup>"
        for s, tile in enumerate(tiles)
    )
    named = "".join(f"<Channel><id>{s}</id><name>{n}</name></Channel>" for s, n in enumerate(("DAPI", "GFP")))
    places = "".join(
        f'<ViewRegistration timepoint="{t}" setup="{s}">'
        + "".join(
            f'<ViewTransform type="affine"><affine>{a}</affine></ViewTransform>' for a in ((moved,) if moved and t else affines)
        )
        + "</ViewRegistration>"
        for t in times
        for s in range(2)
    )
    (folder / "a.xml").write_text(
        f'<?xml version="1.0"?><SpimData version="0.2"><BasePath type="relative">.</BasePath>'
        f'<SequenceDescription>{loader}<ViewSetups>{views}<Attributes name="channel">{named}</Attributes></ViewSetups>'
        '<Timepoints type="range"><first>0</first>'
        f"<last>1</last></Timepoints></SequenceDescription><ViewRegistrations>{places}</ViewRegistrations></SpimData>"
    )
    return str(folder / "a.xml")


@pytest.fixture
def folder(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for s in range(2):
            file[f"s{s:02}/resolutions"] = np.array([[1.0, 1, 1], [2, 2, 1]])
            for t in range(2):
                for level, step in enumerate((1, 2)):
                    voxels = FINE[t, s, :, ::step, ::step].view(np.int16)  # as BigDataViewer stores them
                    file.create_dataset(f"t{t:05}/s{s:02}/{level}/cells", data=voxels, chunks=(2, 3, 4))
    for s in range(2):
        for t in range(2):
            for level, step in enumerate((1, 2)):
                write(group(tmp_path / "a.n5" / f"setup{s}" / f"timepoint{t}") / f"s{level}", FINE[t, s, :, ::step, ::step])
    return tmp_path


@pytest.mark.parametrize("loader", [HDF5, N5])
def test_times_channels_and_levels(folder, loader):
    path = xml(folder, loader)
    stack = open_stack(path)
    np.testing.assert_array_equal(stack.data, FINE)
    assert stack.axes == ("t", "c")
    assert [c["label"] for c in stack.lead[1].omero["channels"]] == ["DAPI", "GFP"]
    coarse = pickle.loads(pickle.dumps(open_volume(f"{path}::channel=GFP,time=1,level=1")))
    np.testing.assert_array_equal(coarse.read(), FINE[1, 1, :, ::2, ::2])
    assert (coarse.grid.spacing, coarse.grid.origin, coarse.grid.unit) == ((1, 1, 1), (0, 0.25, 0.25), "micrometer")
    assert [level.shape for level in coarse.levels] == [(4, 6, 8), (4, 3, 4)]
    assert "view" not in str(info(path).as_dict()["hint"])


def test_registrations_place_the_image(folder):
    turned = "0 -1 0 5 1 0 0 6 0 0 1 7"  # x, y, z: a quarter turn about z, then a shift, in pixels of x
    grid = open_volume(f"{xml(folder, affines=(turned, CALIBRATION))}::channel=0,time=0").grid
    np.testing.assert_allclose(grid.spacing, (1, 0.5, 0.5))
    np.testing.assert_allclose(grid.origin, (3.5, 3, 2.5))
    np.testing.assert_allclose(grid.direction, ((1, 0, 0), (0, 0, 1), (0, -1, 0)))


def test_registrations_that_move_the_view_in_time_are_told(folder, caplog):
    path = xml(folder, moved="1 0 0 9 0 1 0 0 0 0 2 0")
    assert open_volume(f"{path}::channel=0,time=1").grid.origin == (0, 0, 0)
    assert "move the view from one time to the next" in caplog.text


def test_views_in_different_places_are_chosen(folder):
    path = xml(folder, tiles=(0, 1))
    with pytest.raises(Unreadable, match=r"2 views in different places; choose one with '::array=0' \(there are 0 \(view 0\), 1"):
        open_volume(path)
    np.testing.assert_array_equal(open_volume(f"{path}::array=view 1,time=0").read(), FINE[0, 1])
    with pytest.raises(NotFound, match="no view '7'"):
        open_volume(f"{path}::array=7")


@pytest.mark.parametrize("loader", [HDF5, N5])
def test_missing_voxels_are_told_or_filled(folder, loader):
    with h5py.File(folder / "a.h5", "a") as file:
        del file["t00001/s01/0/cells"]
    (folder / "a.n5" / "setup1" / "timepoint1" / "s0" / "attributes.json").unlink()
    path = xml(folder, loader)
    with pytest.raises(Unreadable, match="has no voxels at"):
        open_volume(f"{path}::channel=1,time=1").read()
    np.testing.assert_array_equal(open_volume(f"{path}::channel=1,time=1,missing=fill").read(), 0)


def test_what_is_wrong_is_a_sentence(folder):
    with pytest.raises(Unreadable, match=r"its voxels are kept as 'spimreconstruction\.filelist'"):
        open_volume(xml(folder, '<ImageLoader format="spimreconstruction.filelist"/>'))
    with pytest.raises(NotFound, match=r"b\.h5, which does not exist"):
        open_volume(xml(folder, HDF5.replace("a.h5", "b.h5")))
    with pytest.raises(Unreadable, match="12 numbers were expected"):
        open_volume(xml(folder, affines=("1 0 0",)))
    (folder / "b.xml").write_text("<html/>")
    with pytest.raises(Unreadable, match="an XML file of 'html'"):
        open_volume(folder / "b.xml")
    with pytest.raises(Unreadable, match=r"a file of BigDataViewer; open its \.xml"):
        open_volume(folder / "a.h5")
