"""Runs in an environment of its own, which has antspyx and nitransforms: applies what daskreg exported, and says what came out.

``python judge.py PROGRAM MOVING FIXED POINTS.npy OUT.npz TRANSFORM...``: points (N, 3) are LPS, x, y, z, millimetres; points go
through the first transform first, as ANTs lists them. OUT holds ``moved``, (X, Y, Z), and ``points``.
"""

import sys

import nibabel as nib
import numpy as np


def ants_judges(moving, fixed, points, transforms):
    import ants
    import pandas as pd

    result = ants.apply_transforms(ants.image_read(fixed), ants.image_read(moving), transforms, interpolator="linear")
    table = pd.DataFrame(points, columns=["x", "y", "z"])
    taken = ants.apply_transforms_to_points(3, table, transforms)
    return result.numpy(), taken[["x", "y", "z"]].to_numpy()


def nitransforms_judges(moving, fixed, points, transforms):
    from nitransforms.linear import Affine
    from nitransforms.manip import TransformChain
    from nitransforms.nonlinear import DenseFieldTransform
    from nitransforms.resampling import apply

    if transforms[0].endswith(".h5"):
        chain = TransformChain.from_filename(transforms[0], fmt="itk")
    else:
        read = [(DenseFieldTransform if "nii" in t else Affine).from_filename(t, fmt="itk") for t in transforms]
        chain = TransformChain(read)
    ras = points * [-1, -1, 1]
    moved = apply(chain, moving, reference=fixed, order=1, output_dtype="float32")
    return np.asarray(moved.dataobj), chain.map(ras) * [-1, -1, 1]


def main(program, moving, fixed, points, out, *transforms):
    judge = {"ants": ants_judges, "nitransforms": nitransforms_judges}[program]
    moved, taken = judge(moving, fixed, np.load(points), list(transforms))
    assert moved.shape == nib.load(fixed).shape[:3]
    np.savez(out, moved=moved, points=taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
