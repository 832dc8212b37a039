"""Images, levels and runs distributed over ranks that are threads, each with a single thread for its kernels."""

from collections import namedtuple
from dataclasses import fields, replace

import numpy as np

from daskreg.comm.local import run
from daskreg.engine.images import Image, LevelPlanes, normalise
from daskreg.engine.planes import ArrayPlanes, on
from daskreg.engine.rank import Rank
from daskreg.engine.report import Watch
from daskreg.engine.stored_images import StoredImage
from daskreg.grid import Grid, Partition
from daskreg.kernels.compiler.host_launch import set_thread_count
from daskreg.kernels.device import CPU
from daskreg.planning import make_plan
from tests.phantoms import rotation

Result = namedtuple("Result", "affine displacement losses traffic")


def on_ranks(size, function):
    """``function(comm)`` on so many ranks."""

    def alone_on_a_core(comm):
        set_thread_count(1)
        return function(comm)

    return run(size, alone_on_a_core)


def piece(comm, voxels, grid, partition, rim=0, mask=None):
    """This rank's part of an image."""
    held = partition.around(comm.rank, rim)
    mine = slice(held.start, held.stop)
    return Image(voxels[mine].copy(), grid, partition, held, None if mask is None else mask[mine].copy(), comm.rank, rim)


def cut(planes, *cuts):
    """A partition of any slabs, empty ones too."""
    ends = sorted(min(c, planes) for c in cuts)
    slabs = Partition.of(planes, 1).slabs[:1]
    span = type(slabs[0])
    return Partition(planes, tuple(span(a, b) for a, b in zip([0, *ends], [*ends, planes], strict=True)))


def grids(fixed, moving):
    """Two grids of these shapes that share neither spacing, origin nor direction."""
    turn = tuple(map(tuple, rotation((7, -9, 13))))
    middle = Grid(moving, (1.1, 0.9, 1.0), direction=turn).center - Grid(fixed).center
    return Grid(fixed), Grid(moving, (1.1, 0.9, 1.0), tuple(-middle), turn)


def stored(image, allocate, half=False):
    """An image with its planes out of memory;  half: as the bits of float16, for mixed storage."""
    planes = []
    if half:
        image.round()
        image.hold(half=True)
    for array in (image.voxels, image.mask):
        planes.append(None if array is None else allocate(1, image.held, array.shape[1:], array.dtype))
        if array is not None:
            planes[-1].write(image.held, array[None])
    given = {f.name: getattr(image, f.name) for f in fields(Image) if f.init and f.name != "_levels"}
    nothing = {"voxels": image.voxels[:0], "mask": None if image.mask is None else image.mask[:0]}
    return StoredImage(**{**given, **nothing}, full=LevelPlanes(*planes), allocate=allocate)


class Registration:
    """Two images, perhaps masked, by one configuration, on any number of ranks."""

    def __init__(self, fixed, moving, config, masks=(None, None), state="device", slab=7, stored=()):
        """stored: shrink factors of the levels whose images are out of memory."""
        self.state, self.slab, self.scratch, self.stored = state, slab, None, stored
        self.voxels, self.masks, self.config = (fixed, moving), masks, config
        self.grids = grids(fixed.shape, moving.shape)

    def plan(self, ranks, residency):
        masked = self.masks[0] is not None, self.masks[1] is not None
        plan = make_plan(*self.grids, self.config, workers=ranks, residency=residency, minimum_planes=1, masks=masked)
        images = "disk" if self.stored else "device"
        return replace(plan, images=images, levels=tuple(tuple(map(self.moved, levels)) for levels in plan.levels))

    def moved(self, level):
        """With images and fields where they are to be."""
        kept = {level.fixed_factors, level.moving_factors} & set(self.stored)
        return replace(level, state=self.state, slab=self.slab, images="disk" if kept else "device")

    def images(self, plan, comm):
        for role, partition, rim in ((0, plan.partition, plan.rims[0]), (1, plan.shards, plan.rims[1])):
            image = piece(comm, self.voxels[role], self.grids[role], partition, rim, self.masks[role])
            normalise(image.voxels, self.config, comm, "an image", partition[comm.rank].within(image.held))
            yield self.placed(image)

    def placed(self, image):
        """Out of memory, where it is to be."""
        return stored(image, self.scratch or ArrayPlanes.zeros) if self.stored else image

    def rank(self, comm, residency, watch=None, save=None):
        plan = self.plan(comm.size, residency)
        return Rank(plan, tuple(self.images(plan, comm)), np.eye(4), comm, watch or Watch(), save, scratch=self.scratch)

    def outcome(self, rank):
        """What a rank comes to, its displacement without halo."""
        made = rank.run()
        u = None if made.displacement is None else on(CPU, made.displacement, made.block.own).copy()
        return Result(made.affine, u, [level.losses for level in made.levels], rank.comm.traffic)

    def run(self, ranks, residency="replicate"):
        return whole(on_ranks(ranks, lambda comm: self.outcome(self.rank(comm, residency))))


def whole(parts):
    """One result of those of all ranks, which agree on all but their planes; losses are rank 0's."""
    assert all(p.affine.tobytes() == parts[0].affine.tobytes() for p in parts)
    u = None if parts[0].displacement is None else np.concatenate([p.displacement for p in parts], axis=1)
    return Result(parts[0].affine, u, parts[0].losses, sum((p.traffic for p in parts), start=type(parts[0].traffic)()))


def assert_same_bits(found, expected):
    """Transform and losses."""
    assert found.losses == expected.losses
    assert found.affine.tobytes() == expected.affine.tobytes()
    if expected.displacement is not None:
        np.testing.assert_array_equal(found.displacement, expected.displacement)
        assert found.displacement.tobytes() == expected.displacement.tobytes()
