"""What a view hands out for other libraries, against what these read of its files without framecache."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.store import FeatureView, Journal, open_view
from tests.support.features import (
    CODECS,
    FORMATS,
    clip_maps,
    fill,
    frame_times,
    make_contract,
    make_layout,
    make_view,
    publish_clips,
    read_plainly,
)

CLIPS = {"b": 30, "a": 5, "c": 47, "d": 1}  # shards have 32 rows: b and c cross their borders


def rows_of(view: FeatureView) -> object:
    return view.zarr() if view.layout.format == "zarr" else view.h5py()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_array_is_that_of_the_container_and_the_table_says_where_clips_are(tmp_path, form, codec):
    path = make_view(tmp_path, CLIPS, format=form, codec=codec)
    with open_view(path) as view:
        array, table = rows_of(view), view.table()
        plain, _ = read_plainly(path)
        np.testing.assert_array_equal(array[:], plain)
        assert table["clip_id"].to_pylist() == sorted(table["clip_id"].to_pylist())
        assert table.num_rows > len(CLIPS)
        for clip_id, num_frames in CLIPS.items():
            lines = table.filter(pa.compute.equal(table["clip_id"], clip_id)).to_pylist()
            spans = [plain[line["row"] : line["row"] + line["num_rows"]] for line in lines]
            np.testing.assert_array_equal(np.concatenate(spans), clip_maps(clip_id, num_frames))
            seconds = np.concatenate([line["frame_seconds"] for line in lines])
            np.testing.assert_array_equal(seconds, frame_times(num_frames))
            assert [line["first_frame"] for line in lines] == list(
                np.cumsum([0, *(line["num_rows"] for line in lines)])[:-1]
            )


@pytest.mark.parametrize("form", FORMATS)
def test_the_dask_array_has_the_rows_of_clips_alone_in_storage_order(tmp_path, form):
    contract = make_contract()
    layout = make_layout(contract, format=form)
    journal = Journal(tmp_path / "journal")
    fill(journal, contract, layout, CLIPS)
    path = publish_clips(journal, contract, layout, ["a", "c", "d"], tmp_path / "features")  # b leaves holes
    plain, _ = read_plainly(path)
    with open_view(path) as view:
        rows, table = view.dask().compute(), view.table().sort_by("row")
    spans = zip(table["row"].to_pylist(), table["num_rows"].to_pylist(), strict=True)
    np.testing.assert_array_equal(rows, np.concatenate([plain[row : row + count] for row, count in spans]))
    assert len(rows) == 5 + 47 + 1 < len(plain)
    assert not np.isnan(rows).any()


@pytest.mark.parametrize("form", FORMATS)
def test_a_view_without_clips_has_an_empty_table_and_array(tmp_path, form):
    with open_view(make_view(tmp_path, {}, format=form)) as view:
        assert view.table().num_rows == 0
        assert view.dask().shape == (0, *view.map_shape)


def test_asking_for_the_other_container_says_which_it_is(tmp_path: Path) -> None:
    with (
        open_view(make_view(tmp_path / "zarr", CLIPS, format="zarr")) as view,
        pytest.raises(TypeError, match=r"features/layer4 is stored as Zarr: take zarr\(\)"),
    ):
        view.h5py()
    with (
        open_view(make_view(tmp_path / "hdf5", CLIPS, format="hdf5")) as view,
        pytest.raises(TypeError, match=r"features/layer4 is stored as HDF5: take h5py\(\)"),
    ):
        view.zarr()
