"""Extraction: plan, then decode, compute and write side by side, then publish a view."""

from pipeline.extract.config import ExtractConfig, Target
from pipeline.extract.engine import run
from pipeline.extract.plan import Plan, PlannedClip, clip_key, plan
from pipeline.extract.publish import publish_view
from pipeline.extract.write import Result

__all__ = [
    "ExtractConfig",
    "Plan",
    "PlannedClip",
    "Result",
    "Target",
    "clip_key",
    "plan",
    "publish_view",
    "run",
]
