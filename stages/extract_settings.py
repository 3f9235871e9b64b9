"""What params.yaml asks of extraction, and how a terminal shows its progress."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from pipeline.backbone.weights import WeightsConfig
from pipeline.extraction import ExtractConfig, Job, Progress, make_job
from pipeline.extraction.extracted import size_text
from pipeline.manifest import read_manifest
from stages.params import CorpusConfig, load_section
from stages.places import journal_path
from stages.project.sharing import share_journal
from stages.project.visible import visible_manifest, visible_root

_REFRESH_SECONDS = 5.0


def read_job(*, only_plan: bool = False) -> Job:
    """The job that the parameters ask for; with `only_plan`, nothing is written and nothing compiled."""
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ExtractConfig)
    root = visible_root(corpus.root)
    manifest = read_manifest(visible_manifest(corpus.manifest))
    weights, journal = weights_path(), journal_path()
    if not only_plan:
        share_journal(journal)
    return make_job(manifest, root=root, weights=weights, config=config, journal=journal, only_plan=only_plan)


def weights_path() -> Path:
    """weights/<arch>.safetensors of the parameters."""
    return Path("weights") / f"{load_section('weights', WeightsConfig).arch}.safetensors"


class Bars:
    """Draws a bar for each step: its progress, and of computing also frames, frames/s and bytes."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._step = ""

    def __call__(self, progress: Progress) -> None:
        """Draw progress. Called by one thread at a time."""
        bar = self._bar
        if bar is None or progress.step != self._step:
            self.close()
            is_size = progress.step == "read sources"
            self._step, self._bar = (
                progress.step,
                (
                    bar := tqdm(
                        total=progress.num_total,
                        desc=progress.step,
                        unit="B" if is_size else "clip",
                        unit_scale=is_size,
                        delay=0 if progress.step == "extract" else 1,
                    )
                ),
            )
        if progress.num_frames:
            rate = progress.num_frames / max(bar.format_dict["elapsed"], 1e-9)
            text = f"{progress.num_frames} frames, {rate:.0f} frames/s, {size_text(progress.num_bytes)}"
            bar.set_postfix_str(text, refresh=False)
        if progress.num_done != bar.n:
            bar.update(progress.num_done - bar.n)
        elif time.time() - bar.last_print_t > _REFRESH_SECONDS:  # within a long clip
            bar.refresh()

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars that are closed at the end of the block."""
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()
