"""Local correlation on a GPU."""
