"""Memory access that is one instruction on a GPU, with plain formulas that define it.

A voxel is addressed by a 64-bit base shared by all threads of a block, and a 32-bit offset per thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import uint64

from daskreg.kernels.compiler.formula import formula


@formula
def load_vector(array, at):
    """``array[at : at + 4]``, array (N,) float32; ``at`` is a multiple of four, the array is aligned to 16 bytes."""
    first = int(at)
    return array[first], array[first + 1], array[first + 2], array[first + 3]


@formula
def store_vector(array, at, a, b, c, d):
    """``array[at : at + 4] = a, b, c, d``, see ``load_vector``."""
    first = int(at)
    array[first], array[first + 1], array[first + 2], array[first + 3] = a, b, c, d


@formula
def address(array, base):
    """The address of ``array[base]``, array (N,) float32 in global memory, base: uint64; for ``load`` and ``store``."""
    return array, base


@formula
def load(where, at):
    """The float32 ``at`` (uint32) voxels after an address."""
    return where[0][where[1] + at]


@formula
def load_uint16(where, at):
    """``load`` from an array of uint16, as uint32."""
    return where[0][where[1] + at]


@formula
def load_word(where, at):
    """``load`` from an array of uint32."""
    return where[0][where[1] + at]


@formula
def store(where, at, value):
    """Store a value ``at`` (uint32) voxels after an address."""
    where[0][where[1] + at] = value


@formula
def store_if(wanted, where, at, value):
    """Store 32 bits where ``wanted`` (uint32) is not 0, without a branch, into which the compiler would move arithmetic."""
    if wanted != 0:
        where[0][where[1] + at] = value


@formula
def beyond(where, at):
    """The address ``at`` (uint32) voxels after an address."""
    return where[0], where[1] + at


@formula
def add_beyond(where, at, value):
    """Add to the float32 ``at`` (uint32) voxels after an address, in any order with other threads; zeros are not added."""
    if value != 0:
        cuda.atomic.add(where[0], where[1] + at, value)


@formula
def load_cell(image, at, row, plane):
    """The voxels ``image[at]`` and after it, of two rows of two planes, x fastest; at, row, plane: uint64.

    image: flat, float32 or uint16, in global memory; no kernel that calls this may write it, as the compiler may move the loads
    """
    c, e = at + row, at + plane
    g, one = c + plane, uint64(1)
    return image[at], image[at + one], image[c], image[c + one], image[e], image[e + one], image[g], image[g + one]


@formula
def held(value):
    """A uint32 that is kept in a register: the compiler would compute it again wherever it is needed."""
    return value


@formula
def keep_order():
    """What is loaded and stored before this is so in the order of instructions: the compiler would move it."""


@address.intrinsic
def _spot_address() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def address(typing, array, base):
        def generate(context, builder, signature, arguments):
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            wide = ir.IntType(64)
            # opaque to the compiler, which would otherwise add base and distance anew for each field and voxel
            opaque = ir.FunctionType(wide, [wide])
            address = builder.ptrtoint(builder.gep(made.data, [arguments[1]]), wide)
            return builder.asm(opaque, "mov.u64 $0, $1;", "=l,l", [address], side_effect=False)

        return types.uint64(array, types.uint64), generate

    def spot_address(array, base):
        return address(array, base)

    return spot_address


def pointer_beyond(builder: Any, where: Any, at: Any, bits: int = 0) -> Any:
    """The pointer to an element ``at`` voxels after an address: an integer of so many bits, or float32."""
    from llvmlite import ir

    wide, kind = ir.IntType(64), ir.IntType(bits) if bits else ir.FloatType()
    return builder.inttoptr(
        builder.add(where, builder.shl(builder.zext(at, wide), ir.Constant(wide, 1 if bits == 16 else 2))), kind.as_pointer(1)
    )


@load.intrinsic
def _get_beyond() -> Callable[..., Any]:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typing, where, at):
        def generate(context, builder, signature, arguments):
            return builder.load(pointer_beyond(builder, *arguments))

        return types.float32(types.uint64, types.uint32), generate

    def get_beyond(where, at):
        return load(where, at)

    return get_beyond


@load_uint16.intrinsic
def _get_half_beyond() -> Callable[..., Any]:
    return _integer_beyond(16)


@load_word.intrinsic
def _get_word_beyond() -> Callable[..., Any]:
    return _integer_beyond(32)


def _integer_beyond(bits: int) -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def load(typing, where, at):
        def generate(context, builder, signature, arguments):
            value = builder.load(pointer_beyond(builder, *arguments, bits=bits))
            return builder.zext(value, ir.IntType(32)) if bits < 32 else value

        return types.uint32(types.uint64, types.uint32), generate

    def get_integer_beyond(where, at):
        return load(where, at)

    return get_integer_beyond


@store.intrinsic
def _put_beyond() -> Callable[..., Any]:
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typing, where, at, value):
        def generate(context, builder, signature, arguments):
            builder.store(arguments[2], pointer_beyond(builder, *arguments[:2]))
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint32, types.float32), generate

    def put_beyond(where, at, value):
        store(where, at, value)

    return put_beyond


@store_if.intrinsic
def _put_if() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    text = "{ .reg .pred p; setp.ne.u32 p, $2, 0; @p st.global.b32 [$0], $1; }"

    @intrinsic
    def store(typing, wanted, where, at, value):
        constraint = "l,f,r" if value == types.float32 else "l,r,r"

        def generate(context, builder, signature, arguments):
            wanted, where, at, value = arguments
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), value.type, ir.IntType(32)])
            place = builder.ptrtoint(pointer_beyond(builder, where, at), ir.IntType(64))
            builder.asm(kind, text, constraint, [place, value, wanted], side_effect=True)
            return context.get_dummy_value()

        return types.void(types.uint32, types.uint64, types.uint32, value), generate

    def put_if(wanted, where, at, value):
        store(wanted, where, at, value)

    return put_if


@beyond.intrinsic
def _move() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def move(typing, where, at):
        def generate(context, builder, signature, arguments):
            return builder.ptrtoint(pointer_beyond(builder, *arguments), ir.IntType(64))

        return types.uint64(types.uint64, types.uint32), generate

    def move_beyond(where, at):
        return move(where, at)

    return move_beyond


@add_beyond.intrinsic
def _add_beyond() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    # a predicate in place of a branch; without a result, so that no thread waits for it
    text = "{ .reg .pred p; setp.neu.f32 p, $1, 0f00000000; @p red.global.add.f32 [$0], $1; }"

    @intrinsic
    def reduce(typing, where, at, value):
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64), ir.FloatType()])
            place = builder.ptrtoint(pointer_beyond(builder, *arguments[:2]), ir.IntType(64))
            builder.asm(kind, text, "l,f", [place, arguments[2]], side_effect=True)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint32, types.float32), generate

    def reduce_beyond(where, at, value):
        reduce(where, at, value)

    return reduce_beyond


@held.intrinsic
def _held() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def hold(typing, value):
        def generate(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.IntType(32), [ir.IntType(32)])
            return builder.asm(kind, "mov.u32 $0, $1;", "=r,r", arguments, side_effect=True)

        return types.uint32(types.uint32), generate

    def held_value(value):
        return hold(value)

    return held_value


@keep_order.intrinsic
def _warp_barrier() -> Callable[..., Any]:
    def synchronise():
        cuda.syncwarp()

    return synchronise


def _unsigned(builder: Any, index: Any) -> Any:
    """An index as 64 bits: LLVM would interpret shorter ones as signed."""
    from llvmlite import ir

    return index if index.type.width == 64 else builder.zext(index, ir.IntType(64))


@load_cell.intrinsic
def _load_cell() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def load(typing, image, at, row, plane):
        half = image.dtype == types.uint16
        # not loads of LLVM: it would merge them with those of another branch, and compute eight addresses in place of four
        text = [f"ld.global.{'u16' if half else 'f32'} $0, [$1{shift}];" for shift in ("", "+2" if half else "+4")]

        def generate(context, builder, signature, arguments):
            data = context.make_array(image)(context, builder, arguments[0]).data
            rows = [builder.gep(data, [arguments[1]])]
            rows.append(builder.gep(rows[0], [arguments[2]]))
            rows += [builder.gep(start, [arguments[3]]) for start in rows]
            kind = ir.FunctionType(ir.IntType(16) if half else ir.FloatType(), [ir.IntType(64)])
            places = [builder.ptrtoint(start, ir.IntType(64)) for start in rows]
            constraint = "=h,l" if half else "=f,l"
            values = [builder.asm(kind, line, constraint, [place], side_effect=False) for place in places for line in text]
            return cgutils.pack_array(builder, values)

        return types.UniTuple(image.dtype, 8)(image, types.uint64, types.uint64, types.uint64), generate

    def load_all(image, at, row, plane):
        return load(image, at, row, plane)

    return load_all


@load_vector.intrinsic
def _load_vector() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    @intrinsic
    def load(typing, array, at):
        def generate(context, builder, signature, arguments):
            kind = signature.args[0]
            made = context.make_array(kind)(context, builder, arguments[0])
            pointer = builder.gep(made.data, [_unsigned(builder, arguments[1])])
            value = builder.load(builder.bitcast(pointer, ir.VectorType(ir.FloatType(), 4).as_pointer()), align=16)
            parts = [builder.extract_element(value, ir.Constant(ir.IntType(32), q)) for q in range(4)]
            return cgutils.pack_array(builder, parts)

        return types.UniTuple(types.float32, 4)(array, at), generate

    def load_wide(array, at):
        return load(array, at)

    return load_wide


@store_vector.intrinsic
def _store_vector() -> Callable[..., Any]:
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def store(typing, array, at, a, b, c, d):
        def generate(context, builder, signature, arguments):
            made = context.make_array(signature.args[0])(context, builder, arguments[0])
            pointer = builder.gep(made.data, [_unsigned(builder, arguments[1])])
            vector = ir.VectorType(ir.FloatType(), 4)
            value = ir.Constant(vector, ir.Undefined)
            for q in range(4):
                value = builder.insert_element(value, arguments[2 + q], ir.Constant(ir.IntType(32), q))
            builder.store(value, builder.bitcast(pointer, vector.as_pointer()), align=16)

        return types.void(array, at, a, b, c, d), generate

    def store_wide(array, at, a, b, c, d):
        store(array, at, a, b, c, d)

    return store_wide
