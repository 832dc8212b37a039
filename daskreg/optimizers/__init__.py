"""Optimizers, one file each, and when a level has converged."""
