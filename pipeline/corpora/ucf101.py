"""UCF101 by its official train/test lists (https://www.crcv.ucf.edu/data/UCF101.php)."""

import re
from pathlib import Path

from pipeline.corpora.files import Corpus, clips_by_stem, official_list
from pipeline.corpora.splits import carve_val
from pipeline.manifest import Clip
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_lines

_HINT = "Unpack UCF101TrainTestSplits-RecognitionTask.zip and name its folder."
_NUM_CLASSES = 101
_CLASS = re.compile(r"(\d+)\s+(\S.*)")  # 1 ApplyEyeMakeup
_CLIP = re.compile(  # ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1; test has no number
    r"(?P<name>(?P<label>[^/]+)/(?P<stem>[^/]+_(?P<group>g\d+)_c\d+)\.\w+)(?:\s+(?P<number>\d+))?"
)


def ucf101_corpus(root: Path, *, lists: Path, split: int, val_share: float, seed: int) -> Corpus:
    """The clips of trainlist0<split>.txt and testlist0<split>.txt, with the labels of classInd.txt.

    Clips of a class with the same gXX show the same people and place: they are a group. The lists have no
    val split: `val_share` of each class's groups in train become val. Videos are found by their names below
    `root`, in whatever folder; they may have been converted, also to folders of frames.

    Raises ManifestError for lists that are missing, or naming every line that is not as published.
    """
    classes = {}
    path = lists / "classInd.txt"
    problems = Problems(path, noun="line")
    for line, text in _lines(path):
        if match := _CLASS.fullmatch(text):
            classes[match[1]] = match[2]
        else:
            problems.add_at_row(f"{text!r} is not as published: a number and a class.", line)
    problems.raise_if_any()
    videos = clips_by_stem(root)
    clips, missing = [], []
    seen: dict[str, str] = {}
    for part in ("train", "test"):
        path = lists / f"{part}list{split:02d}.txt"
        problems = Problems(path, noun="line")
        for line, text in _lines(path):
            match = _CLIP.fullmatch(text)
            if match is None or (match["number"] and classes.get(match["number"]) != match["label"]):
                problems.add_at_row(
                    f"{text!r} is not as published: a video of a class, and its number.", line
                )
            elif match["stem"] in seen:
                problems.add_at_row(f"{match['name']} is already in {seen[match['stem']]}.", line)
            else:
                seen[match["stem"]] = f"{path.name}, line {line}"
                if match["stem"] not in videos:
                    missing.append(match["name"])
                    continue
                clips.append(
                    Clip(
                        clip_id=match["stem"],
                        sources=(videos[match["stem"]],),
                        split=part,
                        group=f"{match['label']}_{match['group']}",
                        label=match["label"],
                    )
                )
        problems.raise_if_any()
    return Corpus(
        tuple(carve_val(clips, share=val_share, seed=seed)),
        missing=tuple(missing),
        num_classes=len(classes),
        num_classes_published=_NUM_CLASSES,
    )


def _lines(path: Path) -> list[tuple[int, str]]:
    return read_lines(official_list(path, hint=_HINT))
