"""What params.yaml asks of extraction, and how a terminal shows its progress."""

import os
from pathlib import Path

from pipeline.extraction import Job, Progress, make_job
from pipeline.extraction.extracted import size_text
from pipeline.manifest import read_manifest
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.settings.weights import WeightsConfig
from stages.bars import Bars
from stages.params import CorpusConfig, checked, load_section, read_mapping
from stages.places import journal_path
from stages.project.sharing import share_journal
from stages.project.visible import visible_manifest, visible_root


def read_job(*, only_plan: bool = False) -> Job:
    """The job that the parameters ask for; with `only_plan`, nothing is written and nothing compiled."""
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ExtractConfig)
    root = visible_root(corpus.root)
    manifest = read_manifest(visible_manifest(corpus.manifest))
    weights, journal = weights_path(), journal_path()
    if not only_plan:
        share_journal(journal)
    return make_job(
        manifest,
        root=root,
        weights=weights,
        config=config,
        machine=read_machine(),
        journal=journal,
        only_plan=only_plan,
    )


def read_machine() -> Machine:
    """machine.yaml of the project, which queued experiments share; without one, the defaults."""
    path = Path(os.environ.get("DVC_ROOT", "."), "machine.yaml")
    return checked(read_mapping(path), Machine, path=path) if path.exists() else Machine()


def weights_path() -> Path:
    """weights/<arch>.safetensors of the parameters."""
    return Path("weights") / f"{load_section('weights', WeightsConfig).arch}.safetensors"


def show_progress(bars: Bars, progress: Progress) -> None:
    """Move the bar of the step; of computing, it also shows frames, frames/s and bytes."""
    step = progress.step
    if progress.num_frames:
        rate = progress.num_frames / max(bars.elapsed_seconds, 1e-9)
        bars.note(step, f"{progress.num_frames} frames, {rate:.0f} frames/s, {size_text(progress.num_bytes)}")
    unit = "B" if step == "read sources" else None
    bars.show(step, progress.num_done, progress.num_total, unit=unit, delay=0 if step == "extract" else 1)
