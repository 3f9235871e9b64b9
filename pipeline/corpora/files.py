"""Which files of a corpus are clips, where they are, and which of them can't be used."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import ManifestError, few, listed
from pipeline.frames import foreign_kind
from pipeline.manifest import Clip, Fault, fault_of, fault_sentences, images_in_folder, is_image, is_video

log = logging.getLogger(__name__)

_MAX_SUFFIXES = 10  # in a message
_HEAD_BYTES = 4096
_SPACES = "begins or ends with white space, which does not count in a manifest."


@dataclass(frozen=True, slots=True)
class Corpus:
    """The clips of a corpus that can be used, and what can't be used yet."""

    clips: tuple[Clip, ...]
    faulty: tuple[str, ...] = ()  # sources that are there and can't be read, e.g. were not fetched
    missing: tuple[str, ...] = ()  # videos of an official list that no file is named like
    num_classes: int | None = None  # of official lists
    num_classes_published: int | None = None


def visible(folder: Path) -> list[Path]:
    """The entries of a folder, sorted, without hidden ones."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def walk(folder: Path, *, above: tuple[Path, ...] = ()) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its visible files) for a folder and all folders below it.

    Links to a folder that they lie in are left out with a warning. `above` are folders that count as such.
    """
    entries = visible(folder)
    yield folder, [entry for entry in entries if not entry.is_dir()]
    above = (*above, folder.resolve())
    for entry in entries:
        if entry.is_dir() and not leads_back(entry, above=above):
            yield from walk(entry, above=above)


def leads_back(folder: Path, *, above: Sequence[Path] = ()) -> bool:
    """Whether a folder is a link to a folder that it lies in, or to one of `above`; if so, logs a warning."""
    real = folder.resolve()
    is_loop = folder.is_symlink() and (real in above or folder.parent.resolve().is_relative_to(real))
    if is_loop:
        log.warning("Left out: %s is a link that leads back to %s.", folder, real)
    return is_loop


def is_clip_file(path: Path) -> bool:
    """Whether the file's name is a video's or an image's."""
    return is_video(path) or is_image(path)


def official_list(path: Path, *, hint: str) -> Path:
    """The path of an official list. Raises ManifestError, with the hint, when it is missing."""
    if not path.is_file():
        raise ManifestError(f"No {path}. {hint}")
    return path


def clips_by_stem(
    root: Path, *, name: Callable[[PurePosixPath], str] = lambda path: path.stem
) -> Mapping[str, str]:
    """{name without suffix: path relative to `root`} of all videos and folders of frames below it.

    `name` gives the name of a path that is relative to `root`.

    Raises ManifestError when there is none, or when two have one name.
    """
    found: dict[str, str] = {}
    twice: list[str] = []
    for folder, files in walk(root):
        clips = [file for file in files if is_video(file)]
        if folder != root and not clips and any(map(is_image, files)):
            clips = [folder]
        for path in clips:
            source = path.relative_to(root).as_posix()
            stem = name(PurePosixPath(source))
            if stem in found and not path.samefile(root / found[stem]):
                twice.append(f"{found[stem]} and {source}")
            found.setdefault(stem, source)
    if twice:
        raise ManifestError(f"{root}: {len(twice)} videos are there twice. Keep one: {few(twice)}.")
    if not found:
        raise ManifestError(f"{root} has no videos, and no folders of frames. It holds {contents(root)}.")
    check_names(root, found.values(), ())
    bad = find_faults(root, found.values())
    return {stem: source for stem, source in found.items() if source not in bad}


def find_faults(root: Path, sources: Collection[str]) -> dict[str, Fault]:
    """{source: fault} of the sources that were not fetched, or are not what their names say.

    Logs a warning that names them. Raises ManifestError if no source can be used.
    """
    faults = {source: fault_of(root, source) or _content_fault(root / source) for source in sources}
    bad = {source: fault for source, fault in faults.items() if fault}
    lines = listed(fault_sentences(bad).values())
    if bad and len(bad) == len(faults):
        raise ManifestError(f"{root} has no clips that can be used:\n{lines}")
    if bad:
        heading = f"Left out: {len(bad)} of {len(faults)} clips. Mend them, then build the manifest again:"
        is_link = any((root / source).is_symlink() for source in bad)
        hint = "\nMend links to nothing first: DVC, which reads the whole folder, stops at them." * is_link
        log.warning("%s\n%s%s", heading, lines, hint)
    return bad


def contents(folder: Path) -> str:
    """The suffixes of all files in a folder and below it, as `suffixes` has them, or `no files`."""
    return suffixes(file for _, files in walk(folder) for file in files) or "no files"


def suffixes(files: Iterable[Path]) -> str:
    """E.g. `3 .txt, 1 without a suffix`."""
    counts = Counter(file.suffix for file in files).most_common(_MAX_SUFFIXES)
    return ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in counts)


def check_names(root: Path, sources: Iterable[str], labels: Iterable[str]) -> None:
    """Raise ManifestError for names of files and folders that a manifest, trimmed UTF-8, can't hold."""
    problems: dict[str, str] = {}  # by the name to be changed
    for source in sources:
        if source == source.strip() and source.isprintable() and "|" not in source:
            continue
        for path in (*reversed(PurePosixPath(source).parents), PurePosixPath(source)):
            if reason := _name_problem(path.name):
                problems.setdefault(os.fsencode(path).decode(errors="backslashreplace"), reason)
                break
    problems |= {label: _SPACES for label in labels if label != label.strip()}
    if problems:
        lines = listed(f"{name!r} {reason}" for name, reason in problems.items())
        raise ManifestError(
            f"{root}: a manifest can't hold {len(problems)} of its names. Rename these files or folders:\n"
            f"{lines}"
        )


def _name_problem(name: str) -> str | None:
    try:
        name.encode()
    except UnicodeEncodeError:
        try:
            os.fsencode(name).decode("utf-8")
        except UnicodeDecodeError:
            return "is not UTF-8. From Latin-1, `convmv -f latin1 -t utf8 -r --notest FOLDER` renames all."
        encoding = sys.getfilesystemencoding()
        return f"can't be read in this locale, whose encoding is {encoding}: set PYTHONUTF8=1."
    if name != name.strip():
        return _SPACES
    if "|" in name:
        return "holds '|', which separates the names of several images."
    return "holds a control character." if any(ord(char) < 32 or ord(char) == 127 for char in name) else None


def _content_fault(path: Path) -> Fault | None:
    """The fault of a file whose content is not what its name says; of a folder, that of its first image."""
    if path.is_dir():
        images = images_in_folder(path)
        if not images:
            return Fault("is a folder without images", "Name a video, an image or a folder of images.")
        path = images[0]
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        return Fault(f"can't be read: {error.strerror}", "Correct its permissions, or look at the disk.")
    return foreign_kind(head, is_image=is_image(path)) if head else None
