"""Zarr arrays and groups: opening, codecs, pyramids and OME-NGFF metadata."""
