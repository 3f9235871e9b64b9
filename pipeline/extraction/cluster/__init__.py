"""Extraction on several processes or machines, by dask.distributed."""
