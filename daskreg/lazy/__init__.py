"""A transform as a value on Dask arrays: read from files, applied block by block, chained, inverted, written."""
