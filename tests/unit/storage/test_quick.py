"""zarrs codes chunks that zarr-python reads, and the other way round; where it cannot, nothing changes."""

import pickle

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec

from daskreg.storage.quick import quick

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
    fast = quick(plain)
    assert coder(fast) == "ZarrsCodecPipeline"
    fast[...] = voxels
    np.testing.assert_array_equal(plain[...], voxels)
    plain[...] = voxels[::-1]
    np.testing.assert_array_equal(fast[3:30, :, 5:], voxels[::-1][3:30, :, 5:])


@pytest.mark.parametrize("codec", [BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec(), GzipCodec()], ids=type)
def test_in_any_codec_and_after_a_journey_to_another_process(tmp_path, codec):
    fast, voxels = quick(stored(tmp_path / "a.zarr", compressors=codec)), noise("float32")
    pickle.loads(pickle.dumps(fast))[...] = voxels
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a.zarr"))[...], voxels)


def test_a_plane_and_a_list_of_planes_can_be_asked_for(tmp_path):
    fast, voxels = quick(stored(tmp_path / "a.zarr")), noise("float32")
    fast[...] = voxels
    np.testing.assert_array_equal(fast[3], voxels[3])
    np.testing.assert_array_equal(fast.oindex[[1, 5, 30], :, 2], voxels[[1, 5, 30], :, 2])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", ["order of bytes", "codec", "store"])
def test_what_it_does_not_know_is_left_to_zarr(tmp_path, what):
    if what == "order of bytes":
        plain = stored(tmp_path / "a.zarr", ">f4", zarr_format=2)
    elif what == "codec":
        plain = stored(tmp_path / "a.zarr", zarr_format=2, compressors=numcodecs.LZMA())
    else:
        plain = zarr.create_array(zarr.storage.MemoryStore(), shape=SHAPE, chunks=CHUNKS, dtype="float32", fill_value=0)
    fast, voxels = quick(plain), noise("float32")
    assert coder(fast) == "BatchedCodecPipeline"
    fast[...] = voxels
    np.testing.assert_array_equal(fast[...], voxels)


def test_the_configuration_of_the_process_stays_as_it_is(tmp_path):
    before = zarr.config.get("codec_pipeline.path"), zarr.config.get("codec_pipeline.strict", None)
    quick(stored(tmp_path / "a.zarr"))
    assert before == (zarr.config.get("codec_pipeline.path"), zarr.config.get("codec_pipeline.strict", None))


def test_an_empty_chunk_file_is_damage_and_not_zeros(tmp_path):
    fast = quick(stored(tmp_path / "a.zarr"))
    fast[...] = noise("float32")
    (tmp_path / "a.zarr/c/0/0/0").write_bytes(b"")
    with pytest.raises(RuntimeError):
        fast[...]
