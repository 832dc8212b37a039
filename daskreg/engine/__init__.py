"""One rank's view of the run; knows neither Dask nor paths."""
