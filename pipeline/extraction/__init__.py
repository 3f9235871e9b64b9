"""Extraction: plan, then decode, compute and write side by side, then publish a view."""

from pipeline.extraction.config import ExtractConfig, Target
from pipeline.extraction.engine import run
from pipeline.extraction.estimate import Estimate, estimate
from pipeline.extraction.plan import Plan, PlannedClip, clip_key, damaged_key, plan, source_paths
from pipeline.extraction.publish import Faulty, Published, publish_view
from pipeline.extraction.result import Result

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
