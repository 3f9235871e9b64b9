"""HMDB51 by its official split files.

Layout: test_train_splits.rar of https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database,
which has <class>_test_split<1, 2 or 3>.txt with lines `<video>.avi <0, 1 or 2>`. The page also explains the
names of the videos: <title>_<class>_<body>_<motion>_np<people>_<view>_<quality>_<number>.avi.
"""

import logging
import re
from pathlib import Path

from pipeline.corpora.files import Corpus, clips_by_stem
from pipeline.corpora.splits import carve_val, free_torn_groups
from pipeline.errors import ManifestError, few
from pipeline.manifest import Clip
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_lines

log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<name>(?P<stem>\S.*)\.avi)\s+(?P<use>[012])")
_USES = {"1": "train", "2": "test"}  # 0: not in this split
_DETAILS = (
    r"(?P<body>[hufl])_(?P<motion>cm|nm)_np(?P<people>\d+)_(?P<view>fr|ba|le|ri)_(?P<quality>goo|med|bad)_\d+"
)
_NUM_CLASSES = 51


def hmdb51_corpus(root: Path, *, lists: Path, split: int, val_share: float, seed: int) -> Corpus:
    """The clips of all <class>_test_split<split>.txt.

    Clips of a class with the same title are cut from one video: they are a group. The lists have no val
    split: `val_share` of each class's groups in train become val. The details in a name become the columns
    meta_body, meta_motion, meta_people, meta_view and meta_quality.

    Raises ManifestError for lists that are missing, or naming every line that is not as published.
    """
    suffix = f"_test_split{split}.txt"
    paths = sorted(lists.glob(f"*{suffix}"))
    if not paths:
        raise ManifestError(
            f"{lists} has no files like brush_hair{suffix}. Unpack test_train_splits.rar and name its folder."
        )
    videos = clips_by_stem(root)
    clips: list[Clip] = []
    missing: list[str] = []
    unnamed: list[str] = []
    seen: dict[str, str] = {}
    for path in paths:
        label = path.name.removesuffix(suffix)
        named = re.compile(rf"(?P<title>.+)_{re.escape(label)}_{_DETAILS}")
        problems = Problems(path, noun="line")
        for line, text in read_lines(path):
            match = _LINE.fullmatch(text)
            if match is None:
                problems.add_at_row(f"{text!r} is not as published: a video of {label}, and 0, 1 or 2.", line)
                continue
            stem, use = match["stem"], match["use"]
            if stem in seen:
                problems.add_at_row(f"{match['name']} is already in {seen[stem]}.", line)
                continue
            seen[stem] = f"{path.name}, line {line}"
            if use not in _USES:
                continue
            if stem not in videos:
                missing.append(f"{label}/{match['name']}")
                continue
            details = named.fullmatch(stem)
            meta = details.groupdict() if details else {}
            group = f"{label}_{meta.pop('title')}" if meta else None
            unnamed += [stem] if group is None else []
            clips.append(
                Clip(
                    clip_id=stem,
                    sources=(videos[stem],),
                    split=_USES[use],
                    group=group,
                    label=label,
                    meta=meta,
                )
            )
        problems.raise_if_any()
    if unnamed:
        log.warning("%d videos have no group, as their names have no title: %s.", len(unnamed), few(unnamed))
    clips = free_torn_groups(carve_val(clips, share=val_share, seed=seed))
    return Corpus(
        tuple(clips), missing=tuple(missing), num_classes=len(paths), num_classes_published=_NUM_CLASSES
    )
