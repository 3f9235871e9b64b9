"""Extraction: plan, then decode, compute and write side by side, then publish a view."""

from pipeline.extract.config import ExtractConfig, Target
from pipeline.extract.engine import run
from pipeline.extract.estimate import Estimate, estimate
from pipeline.extract.plan import Plan, PlannedClip, clip_key, damaged_key, plan, source_paths
from pipeline.extract.publish import Faulty, Published, publish_view
from pipeline.extract.result import Result

__all__ = [
    "Estimate",
    "ExtractConfig",
    "Faulty",
    "Plan",
    "PlannedClip",
    "Published",
    "Result",
    "Target",
    "clip_key",
    "damaged_key",
    "estimate",
    "plan",
    "publish_view",
    "run",
    "source_paths",
]
