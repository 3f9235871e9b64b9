"""Build a manifest of your own corpus from a folder tree: FOLDER/<class>/<clip>."""

import argparse
import csv
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import ManifestError
from pipeline.frames.images import images_in_folder, is_image
from pipeline.manifest import SPLITS, Clip, write_manifest
from stages import console

log = logging.getLogger(__name__)

# fmt: off
_VIDEO_SUFFIXES = frozenset({
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".ts", ".webm", ".wmv",
})
# fmt: on
_EPILOG = """A clip is a video, an image, or a folder that holds images; its label is the name of the folder
that it lies in. If FOLDER holds train, val and test (FOLDER/train/<class>/<clip>), these are the splits.
Otherwise each class is split by --split, in an order that depends on --seed and the clips' paths alone.
With --labels, the clips are the sources that this CSV names (columns: source,label; relative to FOLDER)."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.manifest", description=__doc__, epilog=_EPILOG)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the corpus root")
    parser.add_argument("--out", type=Path, required=True, help="the manifest to write: .csv or .parquet")
    parser.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.7, 0.15, 0.15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of each class (default: 0.7 0.15 0.15)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")
    parser.add_argument("--labels", type=Path, help="CSV with the columns source,label")
    options = parser.parse_args()
    if min(options.split) <= 0 or abs(sum(options.split) - 1) > 1e-6:
        parser.error(f"--split {' '.join(map(str, options.split))}: give three shares above 0 that sum to 1")
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    if options.labels and not options.labels.is_file():
        parser.error(f"--labels {options.labels} is not a file")

    labels = _read_labels(options.labels, options.folder) if options.labels else _find_labels(options.folder)
    clips = _clips(labels)
    if not all(clip.split for clip in clips):
        clips = _split(clips, shares=options.split, seed=options.seed)
    write_manifest(options.out, clips)
    _print_counts(clips)
    print(f"\n{options.out}: {len(clips)} clips. In params.yaml:\n")
    print(f"corpus:\n  manifest: {options.out}\n  root: {options.folder.resolve()}")


def _read_labels(path: Path, folder: Path) -> dict[Path, str]:
    """{source: label} of a CSV. Raises ManifestError listing every problem with its line."""
    labels: dict[Path, str] = {}
    problems = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != {"source", "label"}:
            raise ManifestError(f"{path}: the first line must be 'source,label'.")
        for row in reader:
            source = Path(row["source"] or "")
            if not row["source"] or not row["label"]:
                problems.append(f"line {reader.line_num}: needs a source and a label.")
            elif source in labels:
                problems.append(f"line {reader.line_num}: {source} is there twice.")
            elif not (folder / source).exists():
                problems.append(f"line {reader.line_num}: {folder / source} does not exist.")
            labels[source] = row["label"] or ""
    if problems:
        raise ManifestError("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    if not labels:
        raise ManifestError(f"{path} names no clips.")
    return labels


def _find_labels(folder: Path) -> dict[Path, str]:
    """{source: label} of FOLDER/<class>/<clip>, or of FOLDER/<split>/<class>/<clip>."""
    has_splits = any((folder / split).is_dir() for split in SPLITS)
    tops = [folder / split for split in SPLITS if (folder / split).is_dir()] if has_splits else [folder]
    labels: dict[Path, str] = {}
    loose: list[Path] = []  # clips outside of class folders
    others: list[Path] = []
    for top in tops:
        for entry in _visible(top):
            if not entry.is_dir():
                (loose if _is_clip(entry) else others).append(entry)
                continue
            for clip in _visible(entry):
                if _is_clip(clip):
                    labels[clip.relative_to(folder)] = entry.name
                else:
                    others.append(clip)
    if loose:
        raise ManifestError(f"{loose[0]} lies in no class folder. Move it into one, or give --labels.")
    if not labels:
        raise ManifestError(
            f"{folder} has no clips. Expected {folder}/<class>/<video, image or image folder>."
        )
    if others:
        log.warning("Left out, neither video nor image: %s", ", ".join(map(str, others)))
    return labels


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return bool(images_in_folder(path))
    return is_image(path) or path.suffix.lower() in _VIDEO_SUFFIXES


def _clips(labels: dict[Path, str]) -> list[Clip]:
    """Clips named by their paths; a clip's split is its top folder if all top folders are splits."""
    has_splits = all(len(source.parts) > 1 and source.parts[0] in SPLITS for source in labels)
    names = Counter(source.with_suffix("") for source in labels)
    clips = []
    for source, label in labels.items():
        name = source.with_suffix("")
        clips.append(
            Clip(
                clip_id=(name if names[name] == 1 else source).as_posix(),
                sources=(source.as_posix(),),
                split=source.parts[0] if has_splits else "",
                label=label,
            )
        )
    return clips


def _split(clips: Sequence[Clip], *, shares: Sequence[float], seed: int) -> list[Clip]:
    """Split each class by `shares`; from three clips on, each split gets one."""
    classes = defaultdict(list)
    for clip in clips:
        classes[clip.label].append(clip)
    splits = {}
    for members in classes.values():
        members.sort(key=lambda clip: hashlib.sha256(f"{seed}:{clip.sources[0]}".encode()).digest())
        num_val, num_test = (
            max(round(len(members) * share), int(len(members) >= least))
            for share, least in zip(shares[1:], (3, 2), strict=True)
        )
        for position, clip in enumerate(members):
            split = "val" if position < num_val else "test" if position < num_val + num_test else "train"
            splits[clip.clip_id] = split
    return [replace(clip, split=splits[clip.clip_id]) for clip in clips]


def _print_counts(clips: Sequence[Clip]) -> None:
    counts = Counter((clip.label, clip.split) for clip in clips)
    labels = sorted({clip.label or "" for clip in clips})
    width = max(len(label) for label in ("class", *labels))
    print("  ".join([f"{'class':{width}}", *(f"{split:>7}" for split in SPLITS)]))
    for label in labels:
        print("  ".join([f"{label:{width}}", *(f"{counts[label, split]:7}" for split in SPLITS)]))


if __name__ == "__main__":
    console.run(main)
