"""zarrs codes chunks that zarr-python reads, and the other way round; where it cannot, nothing changes."""

import multiprocessing
import pickle

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from daskreg.storage.zarr.codecs import encode_box, with_zarrs_codecs
from daskreg.storage.zarr.nodes import lazy_array

SHAPE, CHUNKS = (33, 20, 17), (16, 8, 16)


def coder(array):
    return type(array.async_array.codec_pipeline).__name__


def stored(path, dtype="float32", **options):
    return zarr.create_array(str(path), shape=SHAPE, chunks=CHUNKS, dtype=dtype, fill_value=0, **options)


def noise(dtype):
    return (np.random.default_rng(0).random(SHAPE) * 100).astype(dtype)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "uint16", "int32", "uint64", "float16", "float32", "float64"])
def test_either_reads_what_the_other_wrote(tmp_path, dtype, version):
    plain, voxels = stored(tmp_path / "a.zarr", dtype, zarr_format=version), noise(dtype)
    fast = with_zarrs_codecs(plain)
    assert coder(fast) == "ZarrsPipeline"
    fast[...] = voxels
    np.testing.assert_array_equal(plain[...], voxels)
    plain[...] = voxels[::-1]
    np.testing.assert_array_equal(fast[3:30, :, 5:], voxels[::-1][3:30, :, 5:])


@pytest.mark.parametrize("codec", [BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec(), GzipCodec()], ids=type)
def test_any_codec_is_read_also_after_pickling(tmp_path, codec):
    fast, voxels = with_zarrs_codecs(stored(tmp_path / "a.zarr", compressors=codec)), noise("float32")
    pickle.loads(pickle.dumps(fast))[...] = voxels
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a.zarr"))[...], voxels)


def test_single_planes_and_lists_of_planes_are_read(tmp_path):
    fast, voxels = with_zarrs_codecs(stored(tmp_path / "a.zarr")), noise("float32")
    fast[...] = voxels
    np.testing.assert_array_equal(fast[3], voxels[3])
    np.testing.assert_array_equal(fast.oindex[[1, 5, 30], :, 2], voxels[[1, 5, 30], :, 2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", ["order of bytes", "codec", "store"])
def test_unsupported_arrays_are_left_to_zarr(tmp_path, what):
    if what == "order of bytes":
        plain = stored(tmp_path / "a.zarr", ">f4", zarr_format=2)
    elif what == "codec":
        plain = stored(tmp_path / "a.zarr", zarr_format=2, compressors=numcodecs.LZMA())
    else:
        plain = zarr.create_array(zarr.storage.MemoryStore(), shape=SHAPE, chunks=CHUNKS, dtype="float32", fill_value=0)
    fast, voxels = with_zarrs_codecs(plain), noise("float32")
    assert coder(fast) == "BatchedCodecPipeline"
    fast[...] = voxels
    np.testing.assert_array_equal(fast[...], voxels)


def test_an_archive_in_fortran_order_is_read(tmp_path):
    array, voxels = stored(tmp_path / "a.zarr", zarr_format=2, order="F"), noise("float32")
    array[...] = voxels
    np.testing.assert_array_equal(lazy_array(array, "a").compute(scheduler="sync"), voxels)


def test_an_array_is_read_when_zarr_is_configured_for_fortran_order(tmp_path):
    with zarr.config.set({"array.order": "F"}):
        array, voxels = stored(tmp_path / "a.zarr"), noise("float32")
        array[...] = voxels
        np.testing.assert_array_equal(lazy_array(array, "a").compute(scheduler="sync"), voxels)


def test_a_volume_open_for_reading_only_is_not_written_to(tmp_path):
    stored(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="read-only"):
        with_zarrs_codecs(zarr.open_array(str(tmp_path / "a.zarr"), mode="r"))[...] = 0


def test_a_forked_process_reads_what_its_parent_has_read(tmp_path):
    array = with_zarrs_codecs(stored(tmp_path / "a.zarr"))
    array[...] = noise("float32")
    assert array[...].sum() > 0
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    child = fork.Process(target=lambda: theirs.send(float(array[...].sum())))
    child.start()
    try:
        assert ours.poll(10)
    finally:
        child.kill()
        child.join()


def test_one_plane_across_several_shards(tmp_path):
    plain, voxels = stored(tmp_path / "a.zarr", shards=(16, 8, 16)), noise("float32")
    plain[...] = voxels
    for k in range(SHAPE[0]):
        np.testing.assert_array_equal(with_zarrs_codecs(plain)[k], voxels[k])


def test_an_empty_chunk_file_is_damage_and_not_zeros(tmp_path):
    fast = with_zarrs_codecs(stored(tmp_path / "a.zarr"))
    fast[...] = noise("float32")
    (tmp_path / "a.zarr/c/0/0/0").write_bytes(b"")
    with pytest.raises(RuntimeError):
        fast[...]


@pytest.mark.parametrize("by", ["box", "assignment"])
@pytest.mark.parametrize("layout", [{}, {"shards": (32, 16, 16)}, {"compressors": GzipCodec()}], ids=["chunks", "shards", "gzip"])
def test_empty_chunks_are_stored_and_one_of_them_goes_through_zarr(tmp_path, monkeypatch, layout, by):
    voxels = np.zeros(SHAPE, np.float32)
    voxels[:5, :3, 16:] = 7
    plain = stored(tmp_path / "zarr", **layout).with_config({"write_empty_chunks": True})
    plain[...] = voxels
    fast, alone = with_zarrs_codecs(stored(tmp_path / "zarrs", **layout)), []
    own = type(plain.async_array.codec_pipeline)
    write = own.write

    async def counted(pipeline, batch, *rest):
        alone.append(len(list(batch)))
        await write(pipeline, batch, *rest)

    monkeypatch.setattr(own, "write", counted)
    if by == "box":
        assert encode_box(fast, [slice(0, n) for n in SHAPE], voxels)
    else:
        fast[...] = voxels
    names = [sorted(p.relative_to(at) for p in at.rglob("c/*/*/*")) for at in (tmp_path / "zarr", tmp_path / "zarrs")]
    assert names[0] == names[1]
    assert alone[0] == 1
    assert len(alone) == 1 or "shards" in layout  # whose chunks are written one by one
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "zarrs"))[...], voxels)
    if by == "box":  # its bytes are known now
        before, calls = {name: (tmp_path / "zarrs" / name).read_bytes() for name in names[1]}, len(alone)
        for name in names[1]:
            (tmp_path / "zarrs" / name).unlink()
        assert encode_box(fast, [slice(0, n) for n in SHAPE], voxels)
        assert len(alone) == calls
        assert before == {name: (tmp_path / "zarrs" / name).read_bytes() for name in names[1]}
