"""Something-Something V2 by its official JSON files.

Layout: the labels of https://www.qualcomm.com/developer/software/something-something-v-2-dataset, which are
labels.json, train.json, validation.json, test.json and test-answers.csv. Before, 20BN had published the same
JSON files as something-something-v2-labels.json and so on. Videos are 20bn-something-something-v2/<id>.webm.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.corpora.files import Corpus, clips_by_stem
from pipeline.corpora.splits import carve_missing_val
from pipeline.errors import ManifestError
from pipeline.manifest import Clip
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_lines, read_text

_PREFIX = "something-something-v2-"
_NUM_CLASSES = 174


def ssv2_corpus(root: Path, *, lists: Path, val_share: float, seed: int) -> Corpus:
    """The clips of train.json, validation.json and, with test-answers.csv, of the test split.

    A label is a template without its brackets, as in labels.json. The sentence with the objects' names is the
    caption. Without test-answers.csv, val becomes test and `val_share` of each class's clips in train become
    val.

    Raises ManifestError for lists that are missing, or naming every entry that is not as published.
    """
    path = _find(lists, "labels")
    labels = _read(path)
    if not isinstance(labels, dict):
        raise ManifestError(f"{path} is not as published: an object with a number for each label.")
    videos = clips_by_stem(root)
    clips: list[Clip] = []
    missing: list[str] = []
    seen: set[str] = set()
    answers = lists / "test-answers.csv"
    for path, split in (
        (_find(lists, "train"), "train"),
        (_find(lists, "validation"), "val"),
        *([(answers, "test")] if answers.is_file() else []),
    ):
        problems = Problems(path, noun="line" if path == answers else "entry")
        for number, name, label, sentence in _answers(path) if path == answers else _entries(path):
            if not name or label not in labels:
                problems.add_at_row(
                    f"id {name!r} has the label {label!r}, which is not in labels.json.", number
                )
            elif name in seen:
                problems.add_at_row(f"id {name!r} is there twice.", number)
            elif name in videos:
                captions = (sentence,) if sentence else ()
                clips.append(
                    Clip(clip_id=name, sources=(videos[name],), split=split, label=label, captions=captions)
                )
            else:
                missing.append(f"{name}.webm")
            seen.add(name)
        problems.raise_if_any()
    return Corpus(
        tuple(carve_missing_val(clips, share=val_share, seed=seed)),
        missing=tuple(missing),
        num_classes=len(labels),
        num_classes_published=_NUM_CLASSES,
    )


def _find(lists: Path, part: str) -> Path:
    for path in (lists / f"{part}.json", lists / f"{_PREFIX}{part}.json"):
        if path.is_file():
            return path
    raise ManifestError(
        f"{lists} has no {part}.json. Unpack the labels of the dataset and name their folder."
    )


def _read(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ManifestError(f"{path} can't be read as JSON: {error}") from None


def _entries(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """(number from 1, id, label, sentence) of each entry; texts that are missing are empty."""
    entries = _read(path)
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        texts = entry if isinstance(entry, dict) else {}
        name, template, sentence = (str(texts.get(key, "")) for key in ("id", "template", "label"))
        words = sentence.replace("|", " ").split()  # a manifest separates captions by '|'
        yield number, name, template.replace("[", "").replace("]", ""), " ".join(words)


def _answers(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """The same of each line `<id>;<label>`; there are no sentences."""
    for line, text in read_lines(path):
        name, _, label = text.partition(";")
        yield line, name, label, ""
