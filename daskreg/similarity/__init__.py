"""Similarities, one folder each: parameters in ``__init__``, the implementation in ``loss``."""

from daskreg.similarity.lncc import LNCC
from daskreg.similarity.mse import MSE
from daskreg.similarity.mutual_information import MI
from daskreg.similarity.ngf import NGF

__all__ = ["LNCC", "MI", "MSE", "NGF"]
