"""Splits of clips, groups and classes."""

import hashlib
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.corpora import group_by_source, split_classes
from pipeline.manifest import Clip

SHARES = (0.7, 0.15, 0.15)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(0, 9))
def test_single_clips_are_split_in_the_order_of_a_hash(num_clips: int, seed: int) -> None:
    clips = [Clip("", (f"{i}.mp4",), "", label="a") for i in range(num_clips)]
    order = sorted(range(num_clips), key=lambda i: hashlib.sha256(f"{seed}:{i}.mp4".encode()).digest())
    num_val = max(round(num_clips * 0.15), int(num_clips >= 3))
    num_test = max(round(num_clips * 0.15), int(num_clips >= 2))
    expected = dict.fromkeys(order, "train")
    expected |= dict.fromkeys(order[num_val : num_val + num_test], "test")
    expected |= dict.fromkeys(order[:num_val], "val")
    assert [clip.split for clip in split_classes(clips, shares=SHARES, seed=seed)] == [
        expected[i] for i in range(num_clips)
    ]


@st.composite
def grouped_clips(draw: st.DrawFn) -> list[Clip]:
    """Clips of few files, groups and classes; the clips of some groups have a split."""
    rows = draw(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 7), st.sampled_from("abc")), max_size=40)
    )
    known = draw(st.dictionaries(st.integers(0, 7), st.sampled_from(["train", "val", "test"]), max_size=3))
    return [
        Clip(str(i), (f"{group}-{file}.mp4",), known.get(group, ""), group=f"g{group}", label=label)
        for i, (file, group, label) in enumerate(rows)
    ]


@settings(deadline=None)
@given(grouped_clips(), st.integers(0, 3))
def test_groups_stay_whole_known_splits_stay_and_no_split_is_empty_without_need(
    clips: list[Clip], seed: int
) -> None:
    split = split_classes(clips, shares=SHARES, seed=seed)
    assert [clip.clip_id for clip in split] == [clip.clip_id for clip in clips]
    groups = defaultdict(set)
    for before, after in zip(clips, split, strict=True):
        assert after.split in ("train", "val", "test")
        assert before.split in ("", after.split)
        groups[after.group].add(after.split)
    assert all(len(splits) == 1 for splits in groups.values())
    if (
        len(groups) >= 3
        and not any(clip.split for clip in clips)
        and len({clip.label for clip in clips}) == 1
    ):
        assert {clip.split for clip in split} == {"train", "val", "test"}


def test_classes_that_share_groups_are_split_together() -> None:
    clips = [Clip("", (f"{s}-{c}.mp4",), "", group=f"s{s}", label=c) for s in range(20) for c in "abcde"]
    counts = Counter((clip.label, clip.split) for clip in split_classes(clips, shares=SHARES, seed=0))
    for label in "abcde":
        assert [counts[label, split] for split in ("train", "val", "test")] == [14, 3, 3]


def test_clips_that_share_a_file_are_a_group() -> None:
    sources = [("a",), ("b", "c"), ("c", "d"), ("a",), ("e",), ("d",)]
    clips = [Clip("", item, "", group="ann" if item == ("e",) else None) for item in sources]
    groups = [clip.group for clip in group_by_source(clips)]
    assert groups == ["a", "b", "b", "a", "ann", "b"]
