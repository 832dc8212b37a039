"""Numbers in 16 bits: rounding, and what a word of two moments keeps."""

import numpy as np
import pytest
from numba import njit

from daskreg.kernels.adam.moments import pack_moments, pack_word, unpack_moments
from daskreg.kernels.compiler.formula import CPU
from daskreg.kernels.conversion import decode_bfloat16, encode_bfloat16
from daskreg.kernels.intrinsics.half import from_float16_bits, to_bfloat16, to_float16_bits
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from tests.cases import bfloats, floats

DICE = 1 << 10


def callable_from_python(formula):
    """Formulas are compiled for kernels alone, without what Python needs to call them."""
    compiled = formula.form(CPU)
    return njit(lambda *arguments: compiled(*arguments))


def numbers(count=4000):
    """Of any size and sign."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal(count) * 10.0 ** rng.integers(-30, 30, count)).astype(np.float32)


def test_a_bfloat16_is_the_nearest_one_and_even_where_two_are():
    values = np.concatenate([numbers(), [0, 1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8]]).astype(np.float32)
    convert = callable_from_python(to_bfloat16)
    made = np.array([convert(v) for v in values], np.uint16)
    np.testing.assert_array_equal(made, bfloats(values))
    assert np.abs(floats(made) - values).max(where=values != 0, initial=0) > 0
    np.testing.assert_allclose(floats(made), values, rtol=2**-8)
    np.testing.assert_array_equal(floats(made)[-5:], [0, 1, 1, 1 + 2**-6, -1])


def test_whole_fields_are_rounded_likewise():
    values = numbers(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    bits, back = np.zeros(values.shape, np.uint16), np.zeros_like(values)
    encode_bfloat16(values.shape[1:], values, bits)
    decode_bfloat16(values.shape[1:], bits, back)
    np.testing.assert_array_equal(bits, bfloats(values))
    np.testing.assert_array_equal(back, floats(bits))


def test_moments_come_out_of_a_word_and_go_back_into_it_bit_for_bit():
    """What a checkpoint holds is what was stored, so that a run goes on as if nothing had happened."""
    m, v = numbers(), np.abs(numbers()[::-1])
    pack = callable_from_python(pack_word)
    words = np.array([pack(a, b, np.uint32(DICE // 2)) for a, b in zip(m, v, strict=True)], np.uint32)
    kept = unpack_moments(words)
    np.testing.assert_array_equal(pack_moments(*kept), words)
    np.testing.assert_allclose(kept[0], m, rtol=2**-8)
    np.testing.assert_allclose(kept[1], v, rtol=2**-8)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_the_second_moment_is_right_on_average(part):
    """So that increments far below the last place add up, whatever the decay."""
    value = np.float32(1 + part * 2**-8)
    pack = callable_from_python(pack_word)
    words = [pack(np.float32(0), value, np.uint32(dice)) for dice in range(DICE)]
    found = unpack_moments(np.array(words, np.uint32))[1]
    assert set(np.unique(found)) <= {np.float32(1), np.float32(1 + 2**-8)}
    assert abs(float(found.mean()) - float(value)) < 2**-8 / DICE


def test_dice_are_even_and_differ_between_voxels_iterations_and_components():
    throw, one = callable_from_python(random_bits), callable_from_python(component_bits)
    dice = np.array(
        [[one(np.uint32(throw(np.uint32(k), np.int32(t))), c) for c in range(3)] for k in range(3000) for t in (1, 2)]
    )
    assert np.abs(dice.mean(axis=0) / (DICE - 1) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(np.hstack([dice[::2], dice[1::2], np.roll(dice[::2], 1, axis=0)]).T) - np.eye(9)).max() < 0.06


def test_intensities_keep_eleven_bits():
    values = np.random.default_rng(0).random(1000, np.float32)
    np.testing.assert_allclose(from_float16_bits(to_float16_bits(values)), values, rtol=2**-11, atol=2**-25)
    np.testing.assert_array_equal(to_float16_bits(from_float16_bits(to_float16_bits(values))), to_float16_bits(values))
