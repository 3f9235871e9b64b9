"""What a page is made of: its runs, and what else it shows."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError
from pipeline.frames import DEFAULT_LIMITS
from pipeline.manifest import Clip, read_manifest
from pipeline.report.page.answers import Answers
from pipeline.report.page.gallery import Gallery, make_gallery
from pipeline.report.page.looks import Look
from pipeline.report.runs import Run
from pipeline.settings.extract import Limits

if TYPE_CHECKING:  # imports torch, which takes seconds
    from pipeline.report.run_comparison import RunComparison


@dataclass(frozen=True)
class Change:
    """A setting that differs from the parent experiment's."""

    key: str
    before: Any
    now: Any


@dataclass(frozen=True)
class Extras:
    """What a page shows beside its runs; everything may be missing."""

    root: Path | None = None  # of the corpus; None: no pictures
    limits: Limits = DEFAULT_LIMITS  # of what is decoded
    quarantine: Sequence[Mapping[str, str]] = ()  # rows of quarantine.csv
    parent: str = ""  # the commit that `changes` are against, for people
    changes: Sequence[Change] | None = None  # None: unknown
    looks: Callable[[Sequence[Clip]], Mapping[str, Look]] | None = None  # where a model looked, by clip id
    comparison: "RunComparison | None" = None  # of the runs, where there are several
    faults: Mapping[str, str] = field(default_factory=dict)  # reasons, by what could not be read


@dataclass(frozen=True)
class Context:
    """The content of a page. Each part is read when the first section asks for it."""

    runs: Sequence[Run]  # those that were evaluated
    extras: Extras
    num_clips: int  # that may be shown

    @property
    def run(self) -> Run:
        """The first run."""
        return self.runs[0]

    @functools.cached_property
    def answers(self) -> list[Answers]:
        """Those of each run."""
        return [Answers(run.predictions) for run in self.runs]

    @functools.cached_property
    def gallery(self) -> Gallery:
        """The clips that are shown, with their pictures."""
        faults = []
        try:
            clips = read_manifest(self.run.manifest or Path()).clips(split=self.run.split)
        except (PipelineError, OSError) as error:
            clips, faults = [], [f"The manifest could not be read: {error}"]
        return make_gallery(
            dict(zip((run.name for run in self.runs), self.answers, strict=True)),
            clips={clip.clip_id: clip for clip in clips},
            faults=faults,
            at_most=self.num_clips,
            root=self.extras.root,
            contract=self.run.contracts[0],
            limits=self.extras.limits,
            looks=self.extras.looks,
        )
