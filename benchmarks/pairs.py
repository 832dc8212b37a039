"""More pairs of brains, so that tuning follows principle and not one pair: both directions, one subject, whole heads.

    python benchmarks/pairs.py --data DIR --opponents greedy --only s1->mni,mni->oasis

Writes ``benchmarks/results/pairs.json``; columns as in ``brain.py``. Where the fixed image has no labels, only times and folds are
measured (colin27 -> mni2009c, and its inverse direction, whose moving image has none either).
"""

from __future__ import annotations

from brain import OASIS_TO_MNI, STRUCTURES
from labelled import Pair, options, run, same_ids

# S1's ribbon: 1 and 11 are left and right white matter, 2 and 12 grey; the template's 11 is white matter, 22 cortex
S1_TISSUES = {"wm": ((11,), (1, 11)), "gm": ((22,), (2, 12))}

PAIRS = [
    OASIS_TO_MNI,
    Pair("mni->oasis", OASIS_TO_MNI.moving, OASIS_TO_MNI.fixed, OASIS_TO_MNI.moving_labels, OASIS_TO_MNI.fixed_labels, same_ids(STRUCTURES)),
    Pair("s1->mni", "mni152nlin6_T1_1mm.nii.gz", "pycortexS1_T1_1mm.nii.gz", "mni152nlin6_labels12_1mm.nii.gz",
         "pycortexS1_labels_wm_gm_lr.nii.gz", S1_TISSUES),
    Pair("colin27->mni2009c", "mni152_2009c_asym_T1_cat12_1mm.nii.gz", "colin27_T1_1mm.nii.gz", None, "colin27_labels_AAL116_1mm.nii.gz"),
    Pair("mni2009c->colin27", "colin27_T1_1mm.nii.gz", "mni152_2009c_asym_T1_cat12_1mm.nii.gz", "colin27_labels_AAL116_1mm.nii.gz"),
]  # fmt: skip


def main() -> None:
    """Measure the pairs chosen with ``--only``, or all."""
    parser = options(__doc__, "pairs.json")
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(p.case for p in PAIRS)}")
    args = parser.parse_args()
    chosen = set(args.only.split(",")) if args.only else {p.case for p in PAIRS}
    if chosen - {p.case for p in PAIRS}:
        parser.error(f"--only {args.only}: known are {', '.join(p.case for p in PAIRS)}")
    run([p for p in PAIRS if p.case in chosen], args)


if __name__ == "__main__":
    main()
