"""Peaks of correlations."""
