"""Mutual information on a GPU."""
