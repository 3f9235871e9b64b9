"""50Salads, GTEA and Breakfast by the bundles of MS-TCN.

Layout: data.zip of https://github.com/yabufarha/ms-tcn (https://zenodo.org/records/3625992), which has for
each data set a folder with mapping.txt (`0 background`), groundTruth/<video>.txt (a label a frame) and
splits/<train or test>.split<1, 2, ...>.bundle (`<video>.txt` a line). Videos are those of the data sets:
rgb-01-1.avi, S1_Cheese_C1.mp4, P03/cam01/P03_cereals.avi. Breakfast's P03_stereo01_P03_cereals is
P03/stereo/P03_cereals_ch1.avi.
"""

import re
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from pathlib import Path, PurePosixPath

from pipeline.corpora.files import Corpus, clips_by_stem, official_list
from pipeline.corpora.splits import carve_val, free_torn_groups
from pipeline.manifest import Clip, FrameLabel
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_lines

_HINT = "Unpack MS-TCN's data.zip and name the data set's folder in it."
_CAMERA = re.compile(r"(?:^|/)P\d+/(?P<camera>[a-z]+\d*)/(?P<stem>P\d+_[^/]+)$")  # of Breakfast's videos


@dataclass(frozen=True)
class Segmented:
    """What was published of a data set whose frames are labelled."""

    fps: float  # labels a second
    num_classes: int
    num_splits: int
    name: re.Pattern[str]  # of its videos: `subject`, which is the group, and columns meta_<name>


SEGMENTED = {
    "50salads": Segmented(30, 19, 5, re.compile(r"rgb-(?P<subject>\d+)-\d+")),
    "gtea": Segmented(15, 11, 4, re.compile(r"(?P<subject>S\d+)_(?P<activity>[^_]+)_C\d+")),
    "breakfast": Segmented(
        15, 48, 4, re.compile(r"(?P<subject>P\d+)_(?P<camera>[a-z]+\d+)_P\d+_(?P<activity>.+)")
    ),
}


def mstcn_corpus(
    root: Path, *, dataset: str, lists: Path, split: int, fps: float, val_share: float, seed: int
) -> Corpus:
    """The clips of a data set of SEGMENTED, with a label for each stretch of time in `frame_labels`.

    A frame i of the ground truth is shown at i / `fps` s, and intervals meet halfway between two frames. The
    subject is the group. The bundles have no val split: `val_share` of the subjects in train become val.

    Raises ManifestError for lists that are missing, or naming every line that is not as published.
    """
    published = SEGMENTED[dataset]
    mapping = read_lines(official_list(lists / "mapping.txt", hint=_HINT))
    classes = {text.partition(" ")[2] for _, text in mapping}
    videos = clips_by_stem(root, name=_video_name)
    clips: list[Clip] = []
    missing: list[str] = []
    for part in ("train", "test"):
        path = official_list(lists / f"splits/{part}.split{split}.bundle", hint=_HINT)
        problems = Problems(path, noun="line")
        for line, text in read_lines(path):
            name = PurePosixPath(text).stem
            match = published.name.fullmatch(name)
            if match is None:
                problems.add_at_row(f"{text!r} is not as published: a video of {dataset}.", line)
                continue
            if name not in videos:
                missing.append(name)
                continue
            subject, details = match["subject"], match.groupdict()
            clips.append(
                Clip(
                    clip_id=name,
                    sources=(videos[name],),
                    split=part,
                    group=subject,
                    frame_labels=frame_intervals(lists / f"groundTruth/{name}.txt", classes, fps=fps),
                    meta={key: value for key, value in details.items() if key != "subject"},
                )
            )
        problems.raise_if_any()
    clips = free_torn_groups(carve_val(clips, share=val_share, seed=seed))
    return Corpus(
        tuple(clips),
        missing=tuple(missing),
        num_classes=len(classes),
        num_classes_published=published.num_classes,
    )


def frame_intervals(path: Path, classes: set[str], *, fps: float) -> tuple[FrameLabel, ...]:
    """The runs of equal labels. Raises ManifestError naming the labels that mapping.txt does not have."""
    problems = Problems(path, noun="line")
    lines = read_lines(official_list(path, hint=_HINT))
    labels = [label for _, label in lines]
    for line, label in lines:
        if label not in classes:
            problems.add_at_row(f"{label!r} is not in mapping.txt.", line)
    problems.raise_if_any()
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    ends = list(accumulate(length for _, length in runs))  # the first frame after each run
    bounds = [round(frame / fps, 4) for frame in (0, *(end - 0.5 for end in ends[:-1]), *ends[-1:])]
    return tuple(
        FrameLabel(start, end, label) for (label, _), (start, end) in zip(runs, pairwise(bounds), strict=True)
    )


def _video_name(path: PurePosixPath) -> str:
    """The name of a video in the bundles; Breakfast's own folders are part of it."""
    match = _CAMERA.search(path.with_suffix("").as_posix())
    if match is None:
        return path.stem
    stem, camera = match["stem"], match["camera"]
    if camera == "stereo":
        stem, _, channel = stem.partition("_ch")
        camera = f"stereo{int(channel or 1):02d}"
    return f"{stem.partition('_')[0]}_{camera}_{stem}"
