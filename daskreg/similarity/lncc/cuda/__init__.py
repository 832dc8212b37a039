"""Local normalised cross-correlation on a GPU."""
