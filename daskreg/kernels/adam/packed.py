"""Adam's step on a CPU with both moments of a component in one word of 32 bits, see ``moments``."""

from numba import float32, int64, uint32

from daskreg.kernels.adam.cpu import direction_of_moments, update_moment
from daskreg.kernels.adam.moments import first_moment, pack_word, second_moment
from daskreg.kernels.compiler.formula import formula
from daskreg.kernels.compiler.launch import voxelwise
from daskreg.kernels.intrinsics.random_bits import component_bits, random_bits
from daskreg.kernels.smoothing.cpu import filter_x

index = int64  # replaced by the launcher


@formula
def direction_of_word(word, rates):
    """A component of Adam's direction."""
    return direction_of_moments(first_moment(word), second_moment(word), rates[2], rates[3], rates[4], rates[5])


@voxelwise(sums=1, maxima=True, border=True)
def packed_adam(z, y, x, inside, reach, table, weights, rates, iteration, first, g, words, d):
    """``kernels.adam.cpu.adam`` with stochastic rounding of v; the direction follows from the rounded moments.

    iteration, and first, the global plane at z = 0: on them rounding depends (ints);  words: (3, Z, Y, X) uint32, both
    moments;  other arguments as in ``adam``
    """
    voxel = ((int(z) + int(first)) * g.shape[2] + int(y)) * g.shape[3] + int(x)
    bits, length = random_bits(uint32(voxel), iteration), float32(0)
    for k in range(3):
        c = index(k)
        value, word = filter_x(c, z, y, x, inside, reach, table, weights, g), words[c, z, y, x]
        m, v = update_moment(rates[0], first_moment(word), value), update_moment(rates[1], second_moment(word), value * value)
        word = pack_word(m, v, component_bits(bits, k))
        words[c, z, y, x] = word
        step = direction_of_word(word, rates)
        d[c, z, y, x] = step
        length += step * step
    return (length,)


@voxelwise()
def packed_adam_direction(z, y, x, rates, words, d):
    """The direction that ``packed_adam`` left, from the moments after it; arguments as there."""
    for k in range(3):
        c = index(k)
        d[c, z, y, x] = direction_of_word(words[c, z, y, x], rates)
