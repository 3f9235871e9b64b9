"""A corpus of one's own as a folder tree: FOLDER/<class>/<clip> or FOLDER/<split>/<class>/<clip>."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.corpora.files import (
    Corpus,
    check_names,
    contents,
    find_faults,
    is_clip_file,
    leads_back,
    suffixes,
    visible,
    walk,
)
from pipeline.errors import DecodeError, FolderTreeError, few, listed
from pipeline.manifest import SPLITS, Clip, clip_of_folder, fault_of, images_in_folder, split_named

log = logging.getLogger(__name__)


def folder_corpus(folder: Path) -> Corpus:
    """Clips of the tree: without ids, with labels, and with splits if the top folders are splits.

    A folder of images is a clip. Sources that can't be used (not fetched, not the image that the name says)
    are left out with a warning and are the corpus's `faulty` ones.

    Raises FolderTreeError, listing every problem, for a tree of another shape; ManifestError for names that
    a manifest can't hold, and if no clip can be used.
    """
    tops = _split_folders(folder) or {"": folder}
    found = [(clip, split, name) for split, top in tops.items() for clip, name in _labelled(top)]
    if not found:
        raise FolderTreeError(
            f"{folder} has no clips. Expected {folder}/<class>/<video, image or image folder>; it holds"
            f" {contents(folder)}."
        )
    sources = [clip.relative_to(folder).as_posix() for clip, _, _ in found]
    check_names(folder, sources, {name for _, _, name in found})
    bad = find_faults(folder, sources)
    clips = [
        Clip(clip_id="", sources=(source,), split=split, label=name)
        for source, (_, split, name) in zip(sources, found, strict=True)
        if source not in bad
    ]
    return Corpus(tuple(clips), faulty=tuple(bad))


def name_clips(clips: Sequence[Clip]) -> list[Clip]:
    """The clips, with ids where they have none: the source's path without its suffix, and the time range.

    The suffix stays where the path without it is another clip's as well.
    """
    taken = {clip.clip_id for clip in clips}
    short = Counter(_short(sources) for sources in {clip.sources for clip in clips})
    named = []
    for clip in clips:
        name = _short(clip.sources)
        if short[name] > 1 or name in taken:
            name = "|".join(clip.sources)
        if clip.start_seconds is not None or clip.end_seconds is not None:
            name += f"_{_seconds(clip.start_seconds or 0)}-{_seconds(clip.end_seconds)}"
        named.append(clip if clip.clip_id else replace(clip, clip_id=name))
    return named


def _short(sources: Sequence[str]) -> str:
    return PurePosixPath(sources[0]).with_suffix("").as_posix()


def _seconds(number: float | None) -> str:
    return "end" if number is None else np.format_float_positional(number, trim="-")


def _split_folders(folder: Path) -> dict[str, Path]:
    """{split: its folder} if the tree has splits, in the order of SPLITS; else {}."""
    folders = [entry for entry in visible(folder) if entry.is_dir()]
    named: dict[str, list[Path]] = defaultdict(list)
    for entry in folders:
        if split := split_named(entry.name.strip()):
            named[split].append(entry)
    if not named or all(_has_clip_files(entry) for entries in named.values() for entry in entries):
        return {}  # a class may be called train
    for split, entries in named.items():
        if len(entries) > 1:
            raise FolderTreeError(
                f"{folder}: the folders {_names(entries)} are all split {split!r}. Make them one."
            )
    split_names = _names([entry for [entry] in named.values()])
    others = [entry for entry in folders if [entry] not in named.values() and _has_clips(entry)]
    if others:
        raise FolderTreeError(
            f"{folder} has folders that are named like splits ({split_names}) beside others with clips"
            f" ({_names(others)}). Move the classes into train, val and test."
        )
    if missing := [split for split in SPLITS if split not in named]:
        raise FolderTreeError(
            f"{folder} has folders for splits ({split_names}), but none for {' and '.join(missing)}. Make"
            f" {folder / missing[0]} and move clips there; or put all classes into one folder, to be split."
        )
    for split, [entry] in named.items():
        if entry.name != split:
            log.info("%s is taken as split %s.", entry, split)
    return {split: named[split][0] for split in SPLITS}


def _labelled(top: Path) -> list[tuple[Path, str]]:
    """(clip, label) of each top/<label>/<clip>. Other files are left out with a warning."""
    clips: list[tuple[Path, str]] = []
    others: list[Path] = []
    problems: list[str] = []
    for entry in visible(top):
        if not entry.is_dir():
            if is_clip_file(entry):
                raise FolderTreeError(f"{entry} lies in no class folder. Move it into one.")
            others.append(entry)
            continue
        if leads_back(entry):
            continue
        for clip in visible(entry):
            if not clip.is_dir():
                if is_clip_file(clip):
                    clips.append((clip, entry.name))
                else:
                    others.append(clip)
            elif images_in_folder(clip):
                try:
                    clip_of_folder(clip)
                except DecodeError as error:
                    problems.append(str(error))
                clips.append((clip, entry.name))
            elif not leads_back(clip) and _has_clips(clip):
                problems.append(f"{clip} holds clips, and a class folder holds these itself.")
    if problems:
        raise FolderTreeError(f"{top} is not <class>/<clip>. Rearrange it:\n{listed(problems)}")
    for link in [path for path in others if not path.exists()]:
        if fault := fault_of(link.parent, link.name):
            log.warning("Left out: %s", fault.sentence(link))
            others.remove(link)
    if others:
        log.warning(
            "Left out, because their names are not those of videos or images: %s (%s).",
            suffixes(others),
            few(path.relative_to(top) for path in others),
        )
    return clips


def _has_clips(folder: Path) -> bool:
    return any(is_clip_file(file) for _, files in walk(folder) for file in files)


def _has_clip_files(folder: Path) -> bool:
    return any(is_clip_file(file) for file in visible(folder) if not file.is_dir())


def _names(paths: Sequence[Path]) -> str:
    return few(path.name for path in paths)
