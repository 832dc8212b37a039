"""The pictures of docs/images, from the bundled pair: ``python docs/_site/pictures.py [NAME ...]``, some minutes."""

import logging
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

import daskreg
from daskreg import LNCC, MSE, NGF, Affine, Deformable, Moments, Rigid

IMAGES = Path(__file__).parents[1] / "images"
LINEAR = [Moments(), Rigid(), Affine()]
FIXED, MOVING = daskreg.demo_pair()


def changed(folder, name):
    """The moving image as somebody might bring it."""
    image = nib.load(MOVING)
    voxels, affine = np.asarray(image.dataobj), image.affine
    if name == "turned":  # by 100 degrees, as a header can say
        turn = Rotation.from_rotvec(np.deg2rad(100) * np.array([1, 2, 3]) / np.sqrt(14)).as_matrix()
        affine = nib.affines.from_matvec(turn @ affine[:3, :3], turn @ affine[:3, 3])
    elif name == "filled":
        voxels = np.where(np.arange(voxels.shape[2]) < 40, 0, voxels)
    elif name == "another contrast":
        voxels = np.where(voxels > 20, 255 - voxels, 0)
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.uint8), affine), path)
    return str(path)


CASES = {  # picture: the moving image, the configuration, options
    "right": ("as it is", "brain", {}),
    "pose": ("turned", "brain", {}),
    "pose_search": ("turned", "rigid", {}),
    "affine": ("as it is", LINEAR, {}),
    "coarse": ("as it is", [*LINEAR, Deformable(scales=(4,), iterations=(10,))], {}),
    "filled": ("filled", "brain", {}),
    "filled_background": ("filled", "brain", {"background": "auto"}),
    "contrast": ("another contrast", [*LINEAR, Deformable(similarity=MSE())], {}),
    "contrast_edges": ("another contrast", [*LINEAR, Deformable(similarity=NGF(eta=0.05))], {}),
    "folds": (
        "as it is",
        [*LINEAR, Deformable(similarity=LNCC(radius=1), smooth_gradient=0, smooth_warp=0, maximum_step=0.5)],
        {},
    ),
}


def middle(volume):
    """The three middle planes side by side, top and front up, of a volume (Z, Y, X) or of colours (Z, Y, X, 3)."""
    z, y, x = (n // 2 for n in volume.shape[:3])
    planes = [volume[z], volume[:, y], volume[:, :, x]]
    height = max(p.shape[0] for p in planes)
    planes = [np.pad(p, [(0, height - p.shape[0]), (0, 0), *[(0, 0)] * (p.ndim - 2)]) for p in planes]
    return np.concatenate(planes, axis=1)[::-1]


def overlay(fixed, moved):
    """Fixed in magenta, moved in green: grey where both agree."""
    f, m = (np.clip(v / np.percentile(v, 99.5), 0, 1) for v in (fixed, moved))
    return middle(np.stack([f, m, f], axis=-1))


def jacobian(run):
    """The determinant, folds in red."""
    found = np.asarray(daskreg.load_transform(run).jacobian())
    colours = np.clip(found / 2, 0, 1)[..., None].repeat(3, axis=-1)
    colours[found <= 0] = (1, 0, 0)
    return middle(colours)


def save(colours, path):
    """As a small PNG of twice the size."""
    image = Image.fromarray((255 * colours).round().astype(np.uint8))
    image.resize((2 * image.width, 2 * image.height)).quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main(names):
    """Make the pictures of these names, or all."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    IMAGES.mkdir(exist_ok=True)
    fixed = np.asarray(daskreg.open_volume(FIXED).read(), float)
    with tempfile.TemporaryDirectory() as work:
        for name in names or CASES:
            kind, config, options = CASES[name]
            run = f"{work}/{name}.zarr"
            result = daskreg.register(FIXED, changed(Path(work), kind), config, output=run, progress=False, **options)
            print(f"{name}: {result.verdict.line()}; {result.report['metrics'].get('jacobian')}", flush=True)
            picture = jacobian(run) if name == "folds" else overlay(fixed, np.asarray(result.moved.read(), float))
            save(picture, IMAGES / f"{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
