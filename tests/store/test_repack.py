"""Another layout or fewer bits: the same features, and no network."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.store import Journal, committing, open_view, repack, stored_keys
from tests.support.features import (
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_layout,
    make_writer,
    publish_clips,
)

CLIPS = {"walk": 5, "long": 70, "run": 12}
KEYS = [clip_source(clip_id).key for clip_id in CLIPS]


@pytest.mark.parametrize(
    "layout",
    [
        {"format": "hdf5"},
        {"codec": "zstd"},
        {"format": "hdf5", "codec": "lz4"},
        {"rows_per_chunk": 3, "rows_per_shard": 9},
    ],
)
def test_a_repacked_store_has_the_same_bits_and_times(tmp_path: Path, layout: dict[str, object]) -> None:
    contract, journal = make_contract(), Journal(tmp_path / "journal")
    fill(journal, contract, make_layout(contract), CLIPS)
    target = make_layout(contract, **layout)
    assert repack(journal, KEYS, contract=contract, layout=target, commit_seconds=1e9) == 3
    with open_view(publish_clips(journal, contract, target, list(CLIPS), tmp_path / "features")) as view:
        assert view.layout == target
        for clip_id, num_frames in CLIPS.items():
            np.testing.assert_array_equal(view.read(clip_id), clip_maps(clip_id, num_frames))
            np.testing.assert_array_equal(view.frame_seconds(clip_id), frame_times(num_frames))


def test_float16_is_derived_from_float32_and_never_the_other_way_round(tmp_path: Path) -> None:
    wide, narrow = make_contract(dtype="float32"), make_contract()
    journal = Journal(tmp_path / "journal")
    fill(journal, wide, make_layout(wide), {"walk": 5})
    fill(journal, narrow, make_layout(narrow), {"run": 12})
    target = make_layout(narrow, codec="lz4")
    assert repack(journal, KEYS, contract=narrow, layout=target, commit_seconds=1e9) == 2
    with open_view(publish_clips(journal, narrow, target, ["walk", "run"], tmp_path / "features")) as view:
        expected = clip_maps("walk", 5, dtype="float32").astype("float16")
        np.testing.assert_array_equal(view.read("walk"), expected)
    target = make_layout(wide, codec="lz4")
    assert repack(journal, KEYS, contract=wide, layout=target, commit_seconds=1e9) == 1


def test_a_damaged_copy_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contract, journal = make_contract(), Journal(tmp_path / "journal")
    fill(journal, contract, make_layout(contract), {"walk": 5})
    fill(journal, contract, make_layout(contract), {"run": 12})
    records = journal.records(contract, make_layout(contract)).values()
    (damaged,) = (record for record in records if "walk" in record.spans["clip_id"].to_pylist())
    path = journal.directory(contract, make_layout(contract)) / damaged.shard_name
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.chmod(0o644)  # a published file is read-only
    path.write_bytes(data)
    target = make_layout(contract, format="hdf5")
    assert repack(journal, KEYS, contract=contract, layout=target, commit_seconds=1e9) == 1
    assert "reading clip 'walk'" in caplog.text


def test_a_clip_that_float16_can_not_hold_is_quarantined_when_it_is_derived(tmp_path: Path) -> None:
    wide, narrow = make_contract(dtype="float32"), make_contract()
    journal = Journal(tmp_path / "journal")
    fill(journal, wide, make_layout(wide), {"walk": 5})
    writer = make_writer(journal, wide, make_layout(wide))
    maps = clip_maps("run", 12, dtype="float32")
    maps[7, 0] = -1e5
    with committing(writer):
        writer.append(clip_source("run"), maps, frame_times(12), final=True)
    assert repack(journal, KEYS, contract=narrow, layout=make_layout(narrow), commit_seconds=1e9) == 1
    assert set(stored_keys(journal.records(narrow, make_layout(narrow)).values())) == {KEYS[0]}
    ((key, clip),) = journal.quarantined(narrow.digest()).items()
    assert key == clip_source("run").key
    assert clip.reason == (
        "layer4 at 0.280 s has a value of magnitude 100000, and float16 ends at 65504. Choose dtype float32."
    )
    assert journal.quarantined(wide.digest()) == journal.quarantined(wide.forward_digest()) == {}
    assert journal.forgive(narrow.digest(), KEYS) == {key}
    assert journal.quarantined(narrow.digest()) == {}
