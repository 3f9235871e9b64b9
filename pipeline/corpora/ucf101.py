"""UCF101 by its official train/test lists (https://www.crcv.ucf.edu/data/UCF101.php)."""

import re
from pathlib import Path

from pipeline.corpora.files import Corpus, videos_by_stem
from pipeline.corpora.splits import carve_val
from pipeline.errors import ManifestError
from pipeline.manifest import Clip

_GROUP = re.compile(r"_(g\d+)_c\d+$")


def ucf101_corpus(root: Path, *, lists: Path, split: int, val_share: float, seed: int) -> Corpus:
    """The clips of trainlist0<split>.txt and testlist0<split>.txt, with labels of classInd.txt.

    Clips with the same gXX of a class show the same people and place: they are a group. The lists have
    no val: groups of train, `val_share` of each class, become it. Videos may have been converted and lie
    in other folders: their names count.

    Raises ManifestError for lists that are missing or not as published.
    """
    classes = dict(line.split() for line in _lines(lists / "classInd.txt"))  # "1 ApplyEyeMakeup"
    videos = videos_by_stem(root)
    clips, missing = [], []
    for part in ("train", "test"):
        path = lists / f"{part}list{split:02d}.txt"
        for line in _lines(path):
            name, *number = (
                line.split()
            )  # "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; test has no number
            label, stem = Path(name).parent.name, Path(name).stem
            group = _GROUP.search(stem)
            if group is None or (number and classes.get(number[0]) != label):
                raise ManifestError(
                    f"{path}: {line!r} is not as published: a video of a class, and its number."
                )
            if stem not in videos:
                missing.append(name)
                continue
            clips.append(
                Clip(
                    clip_id=stem,
                    sources=(videos[stem],),
                    split=part,
                    group=f"{label}_{group[1]}",
                    label=label,
                )
            )
    return Corpus(tuple(carve_val(clips, share=val_share, seed=seed)), tuple(missing))


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ManifestError(
            f"No {path}. Unpack UCF101TrainTestSplits-RecognitionTask.zip and name its folder."
        )
    return [line for line in path.read_text().splitlines() if line.strip()]
