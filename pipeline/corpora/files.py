"""Which files of a corpus are clips, and where they lie."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ManifestError
from pipeline.frames import images_in_folder, is_image, is_video
from pipeline.manifest import Clip


@dataclass(frozen=True, slots=True)
class Corpus:
    """The clips of official lists that are on the disk, and the names of those that are not."""

    clips: tuple[Clip, ...]
    missing: tuple[str, ...]


def is_clip(path: Path) -> bool:
    """Whether it is a video, an image or a folder that holds images."""
    if path.is_dir():
        return bool(images_in_folder(path))
    return is_image(path) or is_video(path)


def videos_by_stem(root: Path) -> Mapping[str, str]:
    """{name without suffix: path relative to `root`} of all videos below it, in whatever folders.

    Raises ManifestError when there is none, or a name is there twice.
    """
    found: dict[str, str] = {}
    twice: list[str] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or not is_video(path):
                continue
            source = path.relative_to(root).as_posix()
            if found.setdefault(path.stem, source) != source:
                twice.append(f"{found[path.stem]} and {source}")
    if twice:
        raise ManifestError("\n  ".join([f"{root}: {len(twice)} videos are there twice. Keep one:", *twice]))
    if not found:
        raise ManifestError(f"{root} has no videos.")
    return found
