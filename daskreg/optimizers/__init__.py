"""Optimizers, one folder each: parameters in ``__init__``, the implementation in ``update``; and when a level has converged."""
