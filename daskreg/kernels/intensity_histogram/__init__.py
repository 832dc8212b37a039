"""Histogram of intensities."""
