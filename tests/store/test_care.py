"""Verify, repair, gc, inspect and dump, without a network and without DVC."""

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError, MissingClipError, StoreError
from pipeline.store import Journal, Quarantined, TapView, open_view, publish, read_record, stored_clips
from pipeline.store.upkeep.care import journal_checks, repair, size_bytes, verify, view_checks
from pipeline.store.upkeep.dump import FORMATS, dump
from pipeline.store.upkeep.gc import Garbage, Need, find_garbage, remove_garbage
from pipeline.store.upkeep.summary import journal_sets, view_sets
from stages import store
from tests.support.features import (
    assert_holds,
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_journal,
    make_layout,
    publish_clips,
)

pytestmark = pytest.mark.slow

CLIPS = {"walk": 5, "blink": 1, "long": 70, "run": 12}
CONTRACT = make_contract()


def make_store(path: Path, *, store_format: str = "zarr", codec: str = "none") -> Path:
    """A journal with every kind of file and a view of it, in `path`."""
    journal = Journal(path / ".framecache")
    layout = make_layout(CONTRACT, format=store_format, codec=codec)
    fill(journal, CONTRACT, layout, CLIPS)
    rejected = Quarantined("bad", "bad.mp4", "no frames", 0)
    journal.quarantine(CONTRACT.forward_digest(), clip_source("bad").key, rejected)
    source = path / "source.mp4"
    source.write_bytes(b"frames")
    os.utime(source, (1e9, 1e9))
    digests = journal.digest_cache()
    digests.digest(source)
    digests.save()
    publish_view(journal, path, store_format=store_format, codec=codec)
    return path


def publish_view(journal: Journal, path: Path, *, store_format: str = "zarr", codec: str = "none") -> None:
    layout = make_layout(CONTRACT, format=store_format, codec=codec)
    records = journal.records(CONTRACT, layout)
    stored = stored_clips(records.values())
    clips = {clip_id: stored[clip_source(clip_id).key] for clip_id in CLIPS}
    files = {"quarantine.csv": b"clip_id,source,reason,num_recovered\nbad,bad.mp4,no frames,0\n"}
    publish(journal, [TapView(CONTRACT, layout, clips, records)], path / "features", files=files)


def checks_of(path: Path) -> list:
    return [*journal_checks(path / ".framecache"), *view_checks(path / "features")]


def all_files(path: Path) -> list[Path]:
    """One name of every file that is not a lock."""
    names = {}
    for folder in (path / ".framecache", path / "features"):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix != ".lock":
                names[file.stat().st_ino] = file
    return list(names.values())


def flip_a_bit(path: Path, rng: random.Random) -> None:
    """In place, so that every name of the file has it; the times stay."""
    stat = path.stat()
    path.chmod(0o644)  # a published file is read-only
    with path.open("r+b") as file:
        offset = rng.randrange(stat.st_size)
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def cut_short(path: Path, rng: random.Random) -> None:
    path.chmod(0o644)  # a published file is read-only
    os.truncate(path, rng.randrange(path.stat().st_size))


def is_found(path: Path) -> bool:
    """Whether verify names damage, or refuses to go on."""
    try:
        return bool(verify(checks_of(path)))
    except StoreError:
        return True


def mend(path: Path) -> list:
    return repair(
        path / ".framecache",
        view=path / "features",
        find_copies=lambda _: [],
        on_wait=lambda _: None,
    )


@pytest.mark.parametrize(("store_format", "codec"), [("zarr", "none"), ("hdf5", "zstd")])
def test_an_intact_store_verifies_and_every_byte_is_read_once(
    tmp_path: Path, store_format: str, codec: str
) -> None:
    checks = checks_of(make_store(tmp_path, store_format=store_format, codec=codec))
    num_bytes: list[int] = []
    assert verify(checks, on_bytes=num_bytes.append) == []
    assert len({check.path for check in checks} & set(tmp_path.rglob("*"))) == len(checks)
    assert {file.stat().st_ino for file in all_files(tmp_path)} == {
        check.path.stat().st_ino for check in checks
    }
    assert sum(num_bytes) == size_bytes(checks) == sum(file.stat().st_size for file in all_files(tmp_path))


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short])
@pytest.mark.parametrize(("store_format", "codec"), [("zarr", "none"), ("hdf5", "zstd")])
def test_damage_anywhere_in_any_file_is_found_and_repaired(
    tmp_path: Path, store_format: str, codec: str, damage: Callable[[Path, random.Random], None]
) -> None:
    layout = make_layout(CONTRACT, format=store_format, codec=codec)
    original = make_store(tmp_path / "original", store_format=store_format, codec=codec)
    rng = random.Random(0)
    for number, file in enumerate(file.relative_to(original) for file in all_files(original)):
        for trial in range(2):
            path = tmp_path / f"{number}-{trial}"
            os.system(f"cp -a {original} {path}")
            damage(path / file, rng)
            assert is_found(path), file
            if file.name == "format.json" and b'"format_version": ' in (path / file).read_bytes():
                continue  # a flipped digit may be a newer version, which nobody may touch
            mend(path)
            assert verify(journal_checks(path / ".framecache")) == [], file
            journal = Journal(path / ".framecache")
            known = stored_clips(journal.records(CONTRACT, layout).values())
            lost = {clip_id: n for clip_id, n in CLIPS.items() if clip_source(clip_id).key not in known}
            fill(journal, CONTRACT, layout, lost)
            publish_view(journal, path, store_format=store_format, codec=codec)
            assert verify(checks_of(path)) == [], file
            assert_holds(path / "features/layer4", CLIPS)
            shutil.rmtree(path)


def test_verify_names_shard_and_clips(tmp_path: Path) -> None:
    make_store(tmp_path)
    record = next(
        path
        for path in (tmp_path / ".framecache").rglob("*.record")
        if "walk" in read_record(path).spans["clip_id"].to_pylist()
    )
    shard = record.with_suffix(".shard")
    shard.chmod(0o644)  # a published file is read-only
    with shard.open("r+b") as file:
        file.write(b"\xff\xff")  # of the first chunk: four rows of walk
    (damage,) = verify(checks_of(tmp_path))
    assert damage.path == shard
    assert damage.clip_ids == ("walk",)
    assert str(damage) == f"{shard} (shard {record.stem}) is damaged in 1 of 9 places (clips walk)"


def test_verify_names_a_shard_that_is_missing(tmp_path: Path) -> None:
    make_store(tmp_path)
    shard = tmp_path / "features/layer4/c/1/0/0/0"
    shard.unlink()
    assert [str(damage) for damage in verify(checks_of(tmp_path))] == [f"{shard} is missing"]


def test_a_view_of_its_own_files_is_verified_too(tmp_path: Path) -> None:
    make_store(tmp_path)
    shutil.copytree(tmp_path / "features", tmp_path / "pulled")
    shard = tmp_path / "pulled/layer4/c/0/0/0/0"
    flip_a_bit(shard, random.Random(0))
    (damage,) = verify(view_checks(tmp_path / "pulled"))
    assert damage.path == shard


def test_repair_leaves_an_intact_store_as_it_is(tmp_path: Path) -> None:
    make_store(tmp_path)
    before = {file: file.read_bytes() for file in all_files(tmp_path)}
    assert mend(tmp_path) == []
    assert {file: file.read_bytes() for file in all_files(tmp_path)} == before


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the n-th removal of a file from now on raise Killed before it is done."""
    real = Path.unlink
    removals_left = 10**9

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal removals_left
        if path.suffix != ".lock":
            removals_left -= 1
            if removals_left < 0:
                raise Killed
        real(path, missing_ok=missing_ok)

    def kill(num_removals: int) -> None:
        nonlocal removals_left
        removals_left = num_removals

    monkeypatch.setattr(Path, "unlink", unlink)
    yield kill
    removals_left = 10**9


def test_a_repair_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, killed_after: Callable[[int], None]
) -> None:
    for num_removals in range(5):
        path = make_store(tmp_path / str(num_removals))
        shard = next((path / ".framecache").rglob("*.shard"))
        (path / "cache").mkdir()
        os.link(shard, path / "cache/object")
        flip_a_bit(shard, random.Random(0))
        damaged = shard.read_bytes()

        def mend_all(path: Path = path) -> None:
            repair(
                path / ".framecache",
                view=path / "features",
                find_copies=lambda files: [
                    copy for copy in path.glob("cache/*") if any(copy.samefile(file) for file in files)
                ],
                on_wait=lambda _: None,
            )

        killed_after(num_removals)
        if num_removals < 4:  # the copy, the view's name, the record, the shard
            with pytest.raises(Killed):
                mend_all()
        killed_after(10**9)
        mend_all()
        Journal(path / ".framecache").sweep(CONTRACT, make_layout(CONTRACT))
        assert damaged not in [file.read_bytes() for file in path.rglob("*") if file.is_file()]
        assert verify(journal_checks(path / ".framecache")) == []


def garbage_of(journal: Journal, *needs: Need, **options: float) -> Garbage:
    return find_garbage(journal, needs, **{"now_seconds": 2e9, "training_days": 30, **options})


def shard_ids(journal: Journal) -> set[str]:
    return {path.stem for path in journal.path.rglob("*.record")}


def test_gc_removes_what_no_need_names_or_fits(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    named, fitting, unneeded = (make_contract(tap=tap) for tap in ("layer2", "layer3", "layer4"))
    for contract in (named, fitting, unneeded):
        fill(journal, contract, make_layout(contract), CLIPS)
    names = {path.stem for path in journal.directory(named, make_layout(named)).glob("*.record")}
    others = {path.stem for path in journal.directory(fitting, make_layout(fitting)).glob("*.record")}
    first, *_ = sorted(names)
    needs = [Need("names", frozenset([first])), Need("fits", fits=lambda each: each == fitting)]
    garbage = garbage_of(journal, *needs)
    assert len(shard_ids(journal)) == 9
    remove_garbage(journal, garbage)
    assert shard_ids(journal) == {first} | others
    assert {contract.tap for contract in journal.contracts()} == {"layer2", "layer3"}
    assert garbage_of(journal, *needs).freed_bytes == 0


def test_gc_keeps_what_was_committed_since_the_view_was_published(tmp_path: Path) -> None:
    journal, *_ = make_journal(tmp_path, {"old": 3})
    (old,) = journal.path.rglob("*.record")
    os.utime(old, (1000, 1000))
    fill(journal, CONTRACT, make_layout(CONTRACT), {"new": 3})
    new = shard_ids(journal) - {old.stem}
    remove_garbage(journal, garbage_of(journal, Need("workspace", fits=lambda _: True, since_seconds=1000)))
    assert shard_ids(journal) == new


def test_gc_tells_bytes_that_are_free_at_once_from_shared_ones(tmp_path: Path) -> None:
    journal, *_ = make_journal(tmp_path / "journal", {"alone": 3})
    (alone,) = journal.path.rglob("*.shard")
    fill(journal, CONTRACT, make_layout(CONTRACT), {"shared": 9})
    (shared,) = set(journal.path.rglob("*.shard")) - {alone}
    os.link(shared, tmp_path / "object")

    def size(shard: Path) -> int:
        return shard.stat().st_size + shard.with_suffix(".record").stat().st_size

    garbage = garbage_of(journal)
    assert garbage.freed_bytes == size(alone)
    assert garbage.shared_bytes == size(shared)


def test_gc_removes_what_killed_runs_left_and_keeps_young_trainings(tmp_path: Path) -> None:
    journal, *_ = make_journal(tmp_path, CLIPS)
    directory = journal.directory(CONTRACT, make_layout(CONTRACT))
    left = {directory / f"{'0' * 32}.shard", directory / ".shard.partial-0123"}
    for path in left:
        path.write_bytes(b"rows")
    ages_days = {"young.pt": 5, "young.lock": 31, "old.pt": 31, "old.lock": 31, "trained.lock": 31}
    ages_days |= {"sweeps/young/a.json": 5, "sweeps/old/b.json": 31}
    training = tmp_path / "training"
    for name, age_days in ages_days.items():
        path = training / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"state")
        for each in (path, path.parent):
            os.utime(each, (2e9 - age_days * 86400,) * 2)
    old = tuple(training / name for name in ("old.lock", "old.pt", "trained.lock", "sweeps/old"))
    garbage = garbage_of(journal, Need("all", frozenset(shard_ids(journal))))
    assert set(garbage.leftovers) == left
    assert garbage.training == old
    assert garbage.freed_bytes == 4 + 4 + 4 * 5
    remove_garbage(journal, garbage)
    assert not any(path.exists() for path in (*left, *old))
    names = {str(path.relative_to(training)) for path in training.rglob("*") if path.is_file()}
    assert names == {"young.pt", "young.lock", "sweeps/young/a.json"}
    assert verify(journal_checks(tmp_path)) == []


def test_a_gc_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, killed_after: Callable[[int], None]
) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", {"kept": 5})
    kept = Need("kept", frozenset(shard_ids(journal)))
    fill(journal, CONTRACT, layout, {"unneeded": 70})
    for _ in range(5):  # one removal each; three shards with a record are six
        killed_after(1)
        with pytest.raises(Killed):
            remove_garbage(journal, garbage_of(journal, kept))
        assert verify(journal_checks(journal.path)) == []
    killed_after(10**9)
    remove_garbage(journal, garbage_of(journal, kept))
    assert shard_ids(journal) == kept.shard_ids
    assert len(list(journal.directory(CONTRACT, layout).iterdir())) == 2


def test_a_clip_that_loses_a_shard_does_not_exist_and_can_be_made_again(tmp_path: Path) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", {"long": 70, "short": 3})
    middle = next(
        record.shard_id
        for record in journal.records(CONTRACT, layout).values()
        if record.spans["first_frame"].to_pylist() == [32]
    )
    remove_garbage(
        journal, garbage_of(journal, Need("two of three", frozenset(shard_ids(journal) - {middle})))
    )
    assert set(stored_clips(journal.records(CONTRACT, layout).values())) == {clip_source("short").key}
    fill(journal, CONTRACT, layout, {"long": 70})
    path = publish_clips(journal, CONTRACT, layout, ["long", "short"], tmp_path / "features")
    assert_holds(path, {"long": 70, "short": 3})


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    make_store(tmp_path, store_format="hdf5")
    (here,), (shown,) = journal_sets(tmp_path / ".framecache"), view_sets(tmp_path / "features")
    num_bytes = sum(path.stat().st_size for path in (tmp_path / ".framecache").rglob("*.h5"))
    for each in (here, shown):
        assert each.contract == CONTRACT
        assert each.layout == make_layout(CONTRACT, format="hdf5")
        assert (each.num_clips, each.num_rows, each.num_shards) == (4, 88, 3)
        assert each.size_bytes == num_bytes


def test_dumped_clips_are_readable_without_framecache(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    clips = {"a/b": 3, "50%": 2, "long": 70}
    fill(journal, CONTRACT, make_layout(CONTRACT), clips)
    path = publish_clips(journal, CONTRACT, make_layout(CONTRACT), list(clips), tmp_path / "features")
    done: list[None] = []
    with open_view(path) as view:
        for form in ("npy", "npz", "hdf5"):
            dump(view, view.clip_ids(), tmp_path / form, form=form, on_clip=lambda: done.append(None))
    assert len(done) == 9
    names = {"a/b": "a%2Fb", "50%": "50%25", "long": "long"}
    with h5py.File(tmp_path / "hdf5") as file:
        assert FeatureContract.model_validate_json(file.attrs["contract"]) == CONTRACT
        for clip_id, num_frames in clips.items():
            name, maps, seconds = names[clip_id], clip_maps(clip_id, num_frames), frame_times(num_frames)
            np.testing.assert_array_equal(np.load(tmp_path / f"npy/{name}.npy"), maps)
            np.testing.assert_array_equal(np.load(tmp_path / f"npy/{name}.seconds.npy"), seconds)
            with np.load(tmp_path / f"npz/{name}.npz") as arrays:
                np.testing.assert_array_equal(arrays["features"], maps)
                np.testing.assert_array_equal(arrays["frame_seconds"], seconds)
            np.testing.assert_array_equal(file[f"features/{name}"][:], maps)
            np.testing.assert_array_equal(file[f"frame_seconds/{name}"][:], seconds)


@pytest.mark.parametrize("form", sorted({*FORMATS} - {"mstcn", "actionformer"}))
def test_a_dump_that_can_not_be_leaves_nothing_behind(tmp_path: Path, form: str) -> None:
    make_store(tmp_path)
    with open_view(tmp_path / "features/layer4") as view:
        with pytest.raises(MissingClipError, match="Clip 'nobody' has no features"):
            dump(view, ["walk", "nobody"], tmp_path / "out", form=form)
        flip_a_bit(tmp_path / "features/layer4/c/1/0/0/0", random.Random(0))
        with pytest.raises(StoreError, match="is damaged"):
            dump(view, view.clip_ids(), tmp_path / "out", form=form)
        assert not list(tmp_path.glob("*out*"))
        with pytest.raises(StoreError, match="mstcn holds one vector a frame"):
            dump(view, ["walk"], tmp_path / "out", form="mstcn")
        (tmp_path / "out").mkdir()
        with pytest.raises(StoreError, match="out exists"):
            dump(view, ["walk"], tmp_path / "out", form=form)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs a verb in tmp_path; what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMECACHE_JOURNAL", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def run_verb(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["store", *arguments])
        store.main()
        return capsys.readouterr().out

    return run_verb


def test_inspect_prints_a_table_and_json(tmp_path: Path, run: Callable[..., str]) -> None:
    make_store(tmp_path)
    head, *rows = (line.split() for line in run("inspect").splitlines())
    assert [row[: head.index("shards") + 1] for row in rows] == [
        [
            where,
            *[
                "resnet18",
                "00000000",
                "layer4",
                "none",
                "all",
                "32x32",
                "float16",
                "zarr-none-4x8",
                "4",
                "88",
                "3",
            ],
        ]
        for where in ("journal", "features/layer4")
    ]
    there, shown = json.loads(run("inspect", "--json"))
    assert there["contract"] == shown["contract"] == CONTRACT.model_dump(mode="json")
    assert (there["clips"], shown["rows"], shown["layout"]["rows_per_chunk"]) == (4, 88, 4)


def test_verify_and_repair_say_what_to_run_next(tmp_path: Path, run: Callable[..., str]) -> None:
    make_store(tmp_path)
    assert "files are as they were written" in run("verify")
    shard = next((tmp_path / ".framecache").rglob("*.shard"))
    flip_a_bit(shard, random.Random(0))
    with pytest.raises(DamagedError, match="1 files are damaged"):
        run("verify")
    assert "Now run `dvc repro`" in run("repair")
    assert not shard.exists()


def test_gc_acts_only_when_told_to(tmp_path: Path, run: Callable[..., str]) -> None:
    make_store(tmp_path)
    before = {file: file.read_bytes() for file in all_files(tmp_path)}
    (tmp_path / "params.yaml").write_text("extract: {taps: [layer1], sampling: all, preprocessing: {}}")
    assert "3 shards" in run("gc")
    shutil.rmtree(tmp_path / "features")
    assert "Nothing was removed yet" in run("gc")
    assert all(file.exists() for file in before if file.is_relative_to(tmp_path / ".framecache"))
    (tmp_path / "params.yaml").write_text(
        "{weights: {arch: resnet18}, extract: {taps: [layer1], sampling: all, preprocessing: {}}}"
    )
    output = run("gc", "--yes")
    assert "Freed: " in output
    assert not list((tmp_path / ".framecache").rglob("*.shard"))


def test_dump_writes_the_named_clips(tmp_path: Path, run: Callable[..., str]) -> None:
    make_store(tmp_path)
    assert "2 clips are in out" in run("dump", "features/layer4", "walk", "run", "--out", "out")
    assert {path.name for path in (tmp_path / "out").glob("*.npy")} == {
        "walk.npy",
        "walk.seconds.npy",
        "run.npy",
        "run.seconds.npy",
    }


@pytest.mark.parametrize("verb", ["inspect", "verify", "repair", "gc"])
def test_where_there_are_no_features_a_verb_says_so(verb: str, run: Callable[..., str]) -> None:
    with pytest.raises(StoreError, match=r"no journal|No journal"):
        run(verb)
