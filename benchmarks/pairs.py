"""More pairs of brains, so that tuning does not fit a single pair: both directions, one subject, whole heads.

    python benchmarks/pairs.py --data DIR --opponents greedy --only s1->mni,mni->oasis

Writes ``benchmarks/results/pairs.json``; columns as in ``brain.py``. Where one of the images has no labels (the MNI 2009c
template), only times and folds are measured.
"""

from __future__ import annotations

from brain import OASIS_TO_MNI, STRUCTURES
from labelled import Pair, options, run, same_ids

# S1's ribbon: 1 and 11 are what the left and right white surfaces enclose, deep grey matter and ventricles with it; 2 and 12 are
# cortex. On the template that is 11 white matter, 33 ventricle, 46 to 49 thalamus, caudate, putamen, pallidum; 22 is cortex.
S1_TISSUES = {"wm": ((11, 33, 46, 47, 48, 49), (1, 11)), "gm": ((22,), (2, 12))}

B = OASIS_TO_MNI
MNI_2009C, COLIN, AAL = "mni152_2009c_asym_T1_cat12_1mm.nii.gz", "colin27_T1_1mm.nii.gz", "colin27_labels_AAL116_1mm.nii.gz"
S1, S1_LABELS = "pycortexS1_T1_1mm.nii.gz", "pycortexS1_labels_wm_gm_lr.nii.gz"

PAIRS = [
    B,
    Pair("mni->oasis", B.moving, B.fixed, B.moving_labels, B.fixed_labels, same_ids(STRUCTURES)),
    Pair("s1->mni", "mni152nlin6_T1_1mm.nii.gz", S1, B.fixed_labels, S1_LABELS, S1_TISSUES),
    Pair("colin27->mni2009c", MNI_2009C, COLIN, None, AAL),
    Pair("mni2009c->colin27", COLIN, MNI_2009C, AAL, None),
]


def main() -> None:
    """Measure the pairs selected by ``--only``, or all."""
    parser = options(__doc__, "pairs.json")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(p.case for p in PAIRS)}")
    args = parser.parse_args()
    chosen = set(args.only.split(",")) if args.only else {p.case for p in PAIRS}
    if chosen - {p.case for p in PAIRS}:
        parser.error(f"--only {args.only}: known are {', '.join(p.case for p in PAIRS)}")
    run([p for p in PAIRS if p.case in chosen], args)


if __name__ == "__main__":
    main()
