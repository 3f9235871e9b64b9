"""The job of an extraction in this project, and how a terminal shows its progress."""

from pathlib import Path

from pipeline.backbone.sources import own_code
from pipeline.extraction import Job, Progress, make_job
from pipeline.extraction.extracted import size_text
from pipeline.manifest import Manifest
from pipeline.manifest.recorded import read_sources
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.weights import WeightsConfig
from stages.bars import Bars
from stages.machine import read_machine
from stages.places import SOURCES, journal_path, weights_path
from stages.project.sharing import share_journal


def read_job(
    manifest: Manifest, *, root: Path, network: WeightsConfig, config: ExtractConfig, only_plan: bool = False
) -> Job:
    """The job that these settings ask for; with `only_plan`, nothing is written and nothing compiled."""
    journal = journal_path()
    if not only_plan:
        share_journal(journal)
    return make_job(
        manifest,
        root=root,
        recorded=read_sources(SOURCES),
        weights=weights_path(network.arch),
        own=own_code(network),
        config=config,
        machine=read_machine(),
        journal=journal,
        only_plan=only_plan,
    )


def show_progress(bars: Bars, progress: Progress) -> None:
    """Move the bar of the step; of computing, it also shows frames, frames/s and bytes."""
    step = progress.step
    if progress.num_frames:
        rate = progress.num_frames / max(bars.elapsed_seconds, 1e-9)
        bars.note(step, f"{progress.num_frames} frames, {rate:.0f} frames/s, {size_text(progress.num_bytes)}")
    unit = "B" if step == "read sources" else None
    bars.show(step, progress.num_done, progress.num_total, unit=unit, delay=0 if step == "extract" else 1)
