"""Extraction: plan, then decode, compute and write side by side, then publish a view."""

from pipeline.extraction.engine import compute_clips
from pipeline.extraction.extracted import Extracted
from pipeline.extraction.forecast import Forecast, make_forecast
from pipeline.extraction.job import Job, make_job
from pipeline.extraction.plan import Plan, PlannedClip, clip_key, damaged_key, make_plan
from pipeline.extraction.prepare import preview
from pipeline.extraction.progress import Progress
from pipeline.extraction.publish import Faulty, Published, publish_view
from pipeline.extraction.result import Result
from pipeline.extraction.run import extract, run_job
from pipeline.extraction.targets import Target, extracting_backbone, make_targets

__all__ = [
    "Extracted",
    "Faulty",
    "Forecast",
    "Job",
    "Plan",
    "PlannedClip",
    "Progress",
    "Published",
    "Result",
    "Target",
    "clip_key",
    "compute_clips",
    "damaged_key",
    "extract",
    "extracting_backbone",
    "make_forecast",
    "make_job",
    "make_plan",
    "make_targets",
    "preview",
    "publish_view",
    "run_job",
]
