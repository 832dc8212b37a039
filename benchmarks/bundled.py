"""The bundled pair, Colin27 onto MNI152 2009c at 2 mm: times, memory and folds, against other programs. Needs no other data.

python benchmarks/bundled.py --opponents greedy,ants
"""

from __future__ import annotations

import sys

from labelled import Pair, options, run
from measure import ROOT

PAIR = Pair("colin27->mni152, bundled", "quickstart_mni2009c_T1_2mm.nii.gz", "quickstart_colin27_T1_2mm.nii.gz")

if __name__ == "__main__":
    run([PAIR], options(__doc__, "bundled.json").parse_args(["--data", str(ROOT / "daskreg" / "data"), *sys.argv[1:]]))
