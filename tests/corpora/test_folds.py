"""Folds: which clips each one tests, and official splits that become one manifest."""

from collections import Counter

import pytest

from pipeline.corpora import Corpus, draw_folds, listed_folds, merge_splits
from pipeline.errors import ManifestError
from pipeline.manifest import Clip

LABELS = ("walk", "run")
CLIPS = [
    Clip(f"c{n}", (f"c{n}.mp4",), "train", group=f"g{n // 2}" if n < 20 else None, label=LABELS[n // 2 % 2])
    for n in range(40)
]


def test_each_clip_is_tested_once_and_groups_and_labels_are_kept_together_and_spread() -> None:
    folds = draw_folds(CLIPS, 5)
    tests = [{clip.clip_id for clip in fold if clip.split == "test"} for fold in folds]
    assert sorted(name for names in tests for name in names) == sorted(clip.clip_id for clip in CLIPS)
    for place, fold in enumerate(folds):
        assert [clip.clip_id for clip in fold] == [clip.clip_id for clip in CLIPS]
        assert {clip.clip_id for clip in fold if clip.split == "val"} == tests[(place + 1) % 5]
        splits_of_groups = {(clip.group, clip.split) for clip in fold if clip.group}
        assert len(splits_of_groups) == 10  # each group is in one split
        assert Counter(clip.label for clip in fold if clip.split == "test") == {"walk": 4, "run": 4}


def test_folds_depend_on_names_and_the_seed_alone() -> None:
    def splits(folds: list[list[Clip]]) -> list[dict[str, str]]:
        return [{clip.clip_id: clip.split for clip in fold} for fold in folds]

    assert splits(draw_folds(CLIPS[::-1], 4)) == splits(draw_folds(CLIPS, 4))
    assert splits(draw_folds(CLIPS, 4, seed=1)) != splits(draw_folds(CLIPS, 4))


def test_clips_of_one_file_are_in_one_split() -> None:
    clips = [Clip(f"c{n}", (f"{n // 4}.mp4",), "train", start_seconds=n) for n in range(12)]
    for fold in draw_folds(clips, 3):
        assert len({(clip.sources, clip.split) for clip in fold}) == 3


@pytest.mark.parametrize("number", [2, 31])
def test_impossible_numbers_of_folds_are_refused(number: int) -> None:
    with pytest.raises(ManifestError, match=f"{number} folds: give from 3, .* to 30, the number of groups"):
        draw_folds(CLIPS, number)


def corpus(*clips: tuple[str, str, str | None], missing: tuple[str, ...] = ()) -> Corpus:
    return Corpus(
        tuple(Clip(name, (name,), split, group=group) for name, split, group in clips), (), missing, 2, 2
    )


def test_official_splits_become_columns_and_clips_of_later_ones_are_unused_in_the_first() -> None:
    merged = merge_splits(
        {
            2: corpus(("a", "train", "g"), ("b", "val", "h"), ("c", "test", "i"), missing=("x",)),
            3: corpus(("d", "train", "h"), ("a", "test", "g"), ("b", "val", None), missing=("x", "y")),
        }
    )
    assert [(clip.clip_id, clip.split, clip.group, clip.splits) for clip in merged.clips] == [
        ("a", "train", "g", {"split2": "train", "split3": "test"}),
        ("b", "val", None, {"split2": "val", "split3": "val"}),
        ("c", "test", "i", {"split2": "test"}),
        ("d", "unused", "h", {"split3": "train"}),
    ]
    assert merged.missing == ("x", "y")
    first, second = listed_folds(merged.clips, ["split2", "split3"])
    assert [clip.split for clip in first] == ["train", "val", "test", "unused"]
    assert [clip.split for clip in second] == ["test", "val", "unused", "train"]
    with pytest.raises(ManifestError, match=r"no column 'split1'\. Columns of folds are: split2, split3"):
        listed_folds(merged.clips, ["split1"])
