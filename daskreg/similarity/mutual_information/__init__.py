"""Mutual information."""
