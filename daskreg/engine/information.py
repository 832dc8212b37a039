"""Whether a displacement makes two images less alike by a measure of its own, whatever the stages compared them by.

By NumPy: of so few voxels it takes milliseconds, while the similarity's kernel would have to be compiled for the processor where
the stages run on a GPU.
"""

from __future__ import annotations

import numpy as np

from daskreg.engine.coarse_pair import Array, CoarsePair

BINS = 24  # of each image, between its least and its largest value there: a level has at most some 65000 voxels


def information_of_maps(pair: CoarsePair) -> tuple[float, float]:
    """Mutual information (nats) of fixed and moved by the affine map alone and with the displacement, over the same voxels: those
    that both leave inside. Without a displacement, or such voxels, 0.
    """
    if pair.displacement is None:
        return 0.0, 0.0
    moved, weight = pair.sample(pair.world)
    displaced, still = pair.sample(pair.world, pair.displacement)
    inside = np.minimum(weight, still) > 0.5
    if pair.fixed.weight is not None:
        inside &= pair.fixed.weight > 0.5
    fixed = pair.fixed.voxels[inside]
    return mutual_information(fixed, moved[inside]), mutual_information(fixed, displaced[inside])


def mutual_information(a: Array, b: Array) -> float:
    """Of two rows of values, in nats, from a histogram; 0 of constant ones, or of none."""
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    joint = np.histogram2d(a, b, BINS)[0] / len(a)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / apart[there])).sum())
