"""Gaussian filters and downsampling."""
