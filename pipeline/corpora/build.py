"""From a corpus to its manifest: keep what a previous manifest says; name, split and write the clips."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpora.files import Corpus
from pipeline.corpora.folder import name_clips
from pipeline.corpora.previous import keep_previous
from pipeline.corpora.splits import group_by_source, split_classes
from pipeline.errors import KeptManifestError, ManifestError, PipelineError
from pipeline.manifest import SPLITS, Clip, read_manifest, write_manifest
from pipeline.system.files import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A manifest that was written."""

    clips: tuple[Clip, ...]
    num_kept: int  # clips that the previous manifest has, with their splits and other columns
    had_previous: bool
    num_assumed: int  # clips of images in sequence whose rate is taken to be 1 image a second


def build_manifest(
    path: Path,
    corpus: Corpus,
    *,
    root: Path,
    image_fps: float | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> Built:
    """Write the manifest `path`, .csv or .parquet, of a corpus whose sources are relative to `root`.

    A manifest that is there already keeps its ids, splits and columns that the builder does not fill, unless
    `fresh`. Sequences of images without a rate have the rate `image_fps`. With `shares` of train, val and
    test, clips without a split get one, in an order that depends on `seed` and their names alone. Names of
    videos that the corpus lacks are written to <path>.missing.txt.

    Raises KeptManifestError when the previous manifest can't be read or does not fit the new clips;
    ManifestError, listing every problem, when the clips are no valid manifest.
    """
    _write_missing(path.with_suffix(".missing.txt"), corpus, root=root)
    sequences = {
        clip.sources for clip in corpus.clips if len(clip.sources) > 1 or (root / clip.sources[0]).is_dir()
    }
    clips = [
        replace(clip, image_fps=image_fps)
        if image_fps and clip.sources in sequences and clip.image_fps == 1
        else clip
        for clip in corpus.clips
    ]
    previous = [] if fresh or not path.exists() else _read_previous(path)
    clips = name_clips(keep_previous(clips, previous, faulty=corpus.faulty))
    if shares:
        clips = split_classes(group_by_source(clips), shares=shares, seed=seed)
    try:
        write_manifest(path, clips)
    except ManifestError as error:
        text = str(error)
        if shares and {clip.split for clip in clips} < set(SPLITS):
            num_units = len({clip.group or clip.clip_id for clip in clips})
            text += (
                f"\nThese are {num_units} groups or single clips: a class needs three to be in all splits."
            )
        if previous:
            raise KeptManifestError(
                f"{text}\n{path} is there already: its splits and groups were kept."
            ) from None
        raise type(error)(text) from None
    return Built(
        clips=tuple(clips),
        num_kept=len({clip.clip_id for clip in clips} & {clip.clip_id for clip in previous}),
        had_previous=bool(previous),
        num_assumed=0 if image_fps else sum(c.sources in sequences and c.image_fps == 1 for c in clips),
    )


def _read_previous(path: Path) -> list[Clip]:
    try:
        return list(read_manifest(path))
    except PipelineError as error:
        raise KeptManifestError(
            f"{path} is there already, but its splits and columns can't be kept: correct it. {error}"
        ) from None


def _write_missing(path: Path, corpus: Corpus, *, root: Path) -> None:
    path.unlink(missing_ok=True)
    if not corpus.missing:
        return
    num_listed = len(corpus.clips) + len(corpus.missing)
    if not corpus.clips:
        raise ManifestError(
            f"None of the {num_listed} videos of the lists is below {root}. The first would be"
            f" {corpus.missing[0]}."
        )
    write_atomically(path, "".join(f"{name}\n" for name in corpus.missing).encode())
    log.warning(
        "%d of %d videos of the lists are not below %s. Their names are in %s.",
        len(corpus.missing),
        num_listed,
        root,
        path,
    )
