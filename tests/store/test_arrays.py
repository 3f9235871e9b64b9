"""What a view hands out for other libraries, against what these read of its files without framecache."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.store import FeatureView, TapView, open_view, publish, stored_clips
from pipeline.store.format.tables import FILES_SCHEMA, seal
from pipeline.store.upkeep.care import verify, view_checks
from tests.support.features import (
    CODECS,
    FORMATS,
    assert_holds,
    clip_maps,
    clip_source,
    frame_times,
    make_contract,
    make_journal,
    make_view,
    publish_clips,
    read_plainly,
)

PAGE = Path(__file__).parents[2] / "docs/features.md"
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
        assert table["row"].to_pylist() == sorted(table["row"].to_pylist())
        assert table.num_rows > len(CLIPS)
        for clip_id, num_frames in CLIPS.items():
            lines = lines_of(table, clip_id)
            spans = [plain[line["row"] : line["row"] + line["num_rows"]] for line in lines]
            np.testing.assert_array_equal(np.concatenate(spans), clip_maps(clip_id, num_frames))
            seconds = np.concatenate([line["frame_seconds"] for line in lines])
            np.testing.assert_array_equal(seconds, frame_times(num_frames))
            assert [line["first_frame"] for line in lines] == list(
                np.cumsum([0, *(line["num_rows"] for line in lines)])[:-1]
            )


def lines_of(table: pa.Table, clip_id: str) -> list[dict]:
    """A clip's lines, in the order of its frames."""
    found = [line for line in table.to_pylist() if line["clip_id"] == clip_id]
    return sorted(found, key=lambda line: line["first_frame"])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", FORMATS)
def test_any_reader_of_parquet_finds_the_clips_rows(tmp_path, form, codec):
    path = make_view(tmp_path, CLIPS, format=form, codec=codec)
    plain, _ = read_plainly(path)
    table = pq.read_table(path / "clips.parquet")
    with open_view(path) as view:
        assert table.equals(view.table())
    for clip_id, num_frames in CLIPS.items():
        lines = lines_of(table, clip_id)
        spans = [plain[line["row"] : line["row"] + line["num_rows"]] for line in lines]
        np.testing.assert_array_equal(np.concatenate(spans), clip_maps(clip_id, num_frames))
        seconds = np.concatenate([line["frame_seconds"] for line in lines])
        np.testing.assert_array_equal(seconds, frame_times(num_frames))


def test_clips_of_the_same_bytes_have_the_same_rows(tmp_path):
    journal, contract, layout = make_journal(tmp_path / "journal", {"a": 3, "b": 2})
    records = journal.records(contract, layout)
    stored = stored_clips(records.values())
    names = {"twin": "a", "a": "a", "b": "b"}
    clips = {name: stored[clip_source(clip_id).key] for name, clip_id in names.items()}
    publish(journal, [TapView(contract, layout, clips, records)], tmp_path / "features", files={})
    table = pq.read_table(tmp_path / "features/layer4/clips.parquet", columns=["clip_id", "row", "num_rows"])
    assert [tuple(line.values()) for line in table.to_pylist()] == [("a", 0, 3), ("twin", 0, 3), ("b", 3, 2)]


def test_a_view_that_was_published_without_a_table_of_clips_is_read_and_verified_as_before(tmp_path):
    path = make_view(tmp_path, CLIPS)
    expected = pq.read_table(path / "clips.parquet")
    (path / "clips.parquet").unlink()
    (path.parent / "files.arrow").write_bytes(seal(FILES_SCHEMA.empty_table(), {}))
    assert verify(view_checks(path.parent)) == []
    assert_holds(path, CLIPS)
    with open_view(path) as view:
        assert view.table().equals(expected)


def test_the_blocks_of_the_features_page_run(tmp_path, monkeypatch):
    journal, contract, layout = make_journal(
        tmp_path / "journal", {"other": 5, "digit_00000": 47}, contract=make_contract(tap="layer3")
    )
    publish_clips(journal, contract, layout, ["digit_00000"], tmp_path / "features")
    monkeypatch.chdir(tmp_path)
    names: dict[str, np.ndarray] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(code, names)
    for maps, seconds in (("maps", "frame_seconds"), ("same_maps", "same_seconds")):
        np.testing.assert_array_equal(names[maps], clip_maps("digit_00000", 47))
        np.testing.assert_array_equal(names[seconds], frame_times(47))


@pytest.mark.parametrize("form", FORMATS)
def test_the_dask_array_has_the_rows_of_clips_alone_in_storage_order(tmp_path, form):
    journal, contract, layout = make_journal(tmp_path / "journal", CLIPS, format=form)
    path = publish_clips(journal, contract, layout, ["a", "c", "d"], tmp_path / "features")  # b leaves holes
    plain, _ = read_plainly(path)
    with open_view(path) as view:
        rows, table = view.dask().compute(), view.table()
    spans = zip(table["row"].to_pylist(), table["num_rows"].to_pylist(), strict=True)
    np.testing.assert_array_equal(rows, np.concatenate([plain[row : row + count] for row, count in spans]))
    assert len(rows) == 5 + 47 + 1 < len(plain)
    assert not np.isnan(rows).any()


@pytest.mark.parametrize("form", FORMATS)
def test_a_view_without_clips_has_an_empty_table_and_array(tmp_path, form):
    with open_view(make_view(tmp_path, {}, format=form)) as view:
        assert view.table().num_rows == pq.read_metadata(view.path / "clips.parquet").num_rows == 0
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
