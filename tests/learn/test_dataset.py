"""Features as a dataset of PyTorch, in this process and in the workers of a DataLoader."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import MissingClipError
from pipeline.learn.open_features import open_features
from tests.support.features import FORMATS, clip_maps, frame_times, make_view

CLIPS = {"b": 30, "a": 5, "c": 47}


@pytest.mark.parametrize("form", FORMATS)
def test_an_item_is_a_clips_maps_times_and_id(tmp_path: Path, form: str) -> None:
    with open_features(str(make_view(tmp_path, CLIPS, format=form))) as features:
        dataset = features.dataset()
        assert isinstance(dataset, Dataset)
        assert len(dataset) == 3
        for index, clip_id in enumerate(sorted(CLIPS)):
            maps, frame_seconds, found = dataset[index]
            assert found == clip_id
            np.testing.assert_array_equal(maps.numpy(), clip_maps(clip_id, CLIPS[clip_id]))
            np.testing.assert_array_equal(frame_seconds.numpy(), frame_times(CLIPS[clip_id]))
        assert [clip_id for _, _, clip_id in dataset] == sorted(CLIPS)


def test_chosen_clips_are_the_items_and_one_without_features_is_named(tmp_path: Path) -> None:
    with open_features(make_view(tmp_path, CLIPS)) as features:
        assert [item.clip_id for item in features.dataset(["c", "a"])] == ["c", "a"]
        with pytest.raises(MissingClipError, match="'gone'"):
            features.dataset(["a", "gone"])


@pytest.mark.slow
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_of_a_data_loader_read_the_same(tmp_path: Path, method: str) -> None:
    with open_features(make_view(tmp_path, CLIPS)) as features:
        loader = DataLoader(
            features.dataset(),
            batch_size=None,
            num_workers=2 if method == "fork" else 1,  # which imports torch
            multiprocessing_context=method,
        )
        found = {clip_id: maps.numpy() for maps, _, clip_id in loader}
    assert found.keys() == CLIPS.keys()
    for clip_id, maps in found.items():
        np.testing.assert_array_equal(maps, clip_maps(clip_id, CLIPS[clip_id]))
