"""Extraction on several processes or machines, by dask.distributed."""

from pipeline.errors import extra

with extra("cluster", use="Extraction on several devices or machines"):
    import distributed  # noqa: F401
