"""Runs, transforms, scenes and checkpoints as Zarr stores."""
