"""The losses: one file each."""

from __future__ import annotations

from daskreg import config
from daskreg.kernels.device import NOWHERE
from daskreg.similarity.base import Similarity
from daskreg.similarity.lncc.loss import LocalCorrelation
from daskreg.similarity.mse.loss import MeanSquaredError
from daskreg.similarity.mutual_information.loss import MutualInformation

__all__ = ["NOWHERE", "LocalCorrelation", "MeanSquaredError", "MutualInformation", "Similarity", "make"]


def make(choice: config.MSE | config.LNCC | config.MI) -> Similarity:
    """The similarity a configuration names."""
    match choice:
        case config.MSE():
            return MeanSquaredError()
        case config.LNCC():
            return LocalCorrelation(choice.radius, choice.epsilon, choice.flat, choice.gradient == "exact")
        case config.MI():
            return MutualInformation(choice.bins)
