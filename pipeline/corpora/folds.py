"""Folds: several splits of one corpus, drawn here or official ones."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.corpora.files import Corpus
from pipeline.corpora.splits import group_by_source, shuffled
from pipeline.errors import ManifestError
from pipeline.manifest import UNUSED, Clip

_MIN_FOLDS = 3  # one each for train, val and test


def draw_folds(clips: Sequence[Clip], number: int, *, seed: int = 0) -> list[list[Clip]]:
    """The clips with the splits of each of `number` folds: each clip is in the test split of one of them.

    A fold's val split is the next fold's test split, and all other clips are its train split. Clips of one
    group, or of one file, stay together. Each label is spread over the folds as evenly as groups allow. The
    folds depend on names and the seed alone.

    Raises ManifestError for fewer than three folds, or for more folds than groups.
    """
    units: dict[str, list[Clip]] = defaultdict(list)
    for clip in group_by_source(clips):
        units[clip.group or clip.clip_id].append(clip)
    if not _MIN_FOLDS <= number <= len(units):
        raise ManifestError(
            f"{number} folds: give from {_MIN_FOLDS}, as a fold has train, val and test, to {len(units)}, the"
            " number of groups and single clips."
        )
    counts = [Counter[str]() for _ in range(number)]  # of each fold: clips by label
    folds: dict[str, int] = {}
    for unit in sorted(shuffled(units, seed=seed), key=lambda unit: -len(units[unit])):
        labels = Counter(clip.label or "" for clip in units[unit])
        folds[unit] = min(
            range(number),
            key=lambda fold: (sum(counts[fold][label] for label in labels), counts[fold].total(), fold),
        )
        counts[folds[unit]].update(labels)
    fold_of = {clip.clip_id: folds[unit] for unit, members in units.items() for clip in members}
    names = {0: "test", 1: "val"}  # of folds, counted from a fold on
    return [
        [replace(clip, split=names.get((fold_of[clip.clip_id] - fold) % number, "train")) for clip in clips]
        for fold in range(number)
    ]


def listed_folds(clips: Sequence[Clip], columns: Sequence[str]) -> list[list[Clip]]:
    """The clips with the splits that each of these columns gives them; a clip without one is unused there.

    Raises ManifestError for a column that no clip has.
    """
    known = sorted({name for clip in clips for name in clip.splits})
    if unknown := [name for name in columns if name not in known]:
        raise ManifestError(
            f"The manifest has no column {unknown[0]!r}. Columns of folds are: {', '.join(known) or 'none'}."
        )
    return [[replace(clip, split=clip.splits.get(name, UNUSED)) for clip in clips] for name in columns]


def merge_splits(corpora: Mapping[int, Corpus]) -> Corpus:
    """One corpus of several official splits, by their numbers: `split` is the first, split<N> are all.

    A clip that the first does not have is unused there. A group that one of them tears apart is none.
    """
    first = next(iter(corpora.values()))
    clips: dict[str, Clip] = {}
    splits: dict[str, dict[str, str]] = defaultdict(dict)
    for number, corpus in corpora.items():
        for clip in corpus.clips:
            known = clips.setdefault(clip.clip_id, clip if corpus is first else replace(clip, split=UNUSED))
            if clip.group is None:
                clips[clip.clip_id] = replace(known, group=None)
            splits[clip.clip_id][f"split{number}"] = clip.split
    missing = dict.fromkeys(name for corpus in corpora.values() for name in corpus.missing)
    merged = tuple(replace(clip, splits=splits[clip_id]) for clip_id, clip in clips.items())
    return replace(first, clips=merged, missing=tuple(missing))
