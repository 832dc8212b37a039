"""Labelled brains: the OASIS atlas onto the MNI152 brain, 1 mm, twelve structures, against greedy, ANTs SyN and FireANTs.

    python benchmarks/brain.py --data DIR --opponents greedy,ants,fireants --threads 2

Prints one JSON line per program and writes ``benchmarks/results/brain.json``. Dice is measured by one function for all
programs, on labels warped to the fixed grid with nearest neighbour. ``folded_percent`` is measured on the exported total
displacement, by central differences. ``wall`` includes process start, imports, reading and writing. ``peak_rss`` is in bytes.
"""

from __future__ import annotations

from labelled import Pair, options, run, same_ids

# white matter, cortex, lateral ventricle, cerebellar white matter, thalamus, caudate, putamen, pallidum, brainstem,
# hippocampus, amygdala, cerebellar cortex
STRUCTURES = (11, 22, 33, 44, 46, 47, 48, 49, 50, 51, 52, 55)

OASIS_TO_MNI = Pair(
    "oasis->mni",
    "mni152nlin6_T1_brain_1mm.nii.gz",
    "multipropreg_oasisatlas_T1_1mm.nii.gz",
    "mni152nlin6_labels12_1mm.nii.gz",
    "multipropreg_oasisatlas_labels14_1mm.nii.gz",
    same_ids(STRUCTURES),
)

if __name__ == "__main__":
    run([OASIS_TO_MNI], options(__doc__, "brain.json").parse_args())
