"""Repair and gc where DVC has a hand on the same files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
import zarr

import stages.store
from pipeline.store import open_view
from tests.stages.test_dvc import ran
from tests.support.in_process import run_main
from tests.support.project import NAMES, Project, plans


def store(project: Project, *arguments: str, check: bool = True) -> str:
    status, stdout, stderr = run_main(stages.store.main, project.path, *arguments)
    assert (status == 0) == check, stdout + stderr
    return stdout + stderr


def flip_a_bit(path: Path) -> None:
    """In place, through read-only modes and with the times kept: DVC does not see it."""
    stat = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 8
    path.write_bytes(data)
    path.chmod(stat.st_mode)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def assert_same_features(project: Project, origin: Project) -> None:
    with (
        open_view(project.path / "features/layer4") as view,
        open_view(origin.path / "features/layer4") as expected,
    ):
        assert view.clip_ids() == NAMES
        for name in NAMES:
            np.testing.assert_array_equal(view.read(name), expected.read(name))
            np.testing.assert_array_equal(view.frame_seconds(name), expected.frame_seconds(name))


def features_md5(project: Project) -> str:
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())
    return str(lock["stages"]["extract"]["outs"][0]["md5"])


def test_a_damaged_shard_is_made_again_and_does_not_come_back_from_dvcs_cache(
    project: Project, finished: Project
) -> None:
    shard = project.path / "features/layer4/c/0/0/0/0"
    assert shard.stat().st_nlink == 3
    flip_a_bit(shard)
    project.dvc("repro")  # links the same file again, from its cache
    output = store(project, "verify", check=False)
    assert "1 files are damaged" in output
    assert "clip0" in output

    assert "Now run `dvc repro`" in store(project, "repair")
    assert plans(project.dvc("repro")) == ["8 new, 0 unchanged"]
    assert "are as they were written" in store(project, "verify")
    assert_same_features(project, finished)
    assert ran(project.dvc("repro")) == ["settings"]
    shutil.rmtree(project.path / "features")
    project.dvc("checkout", "extract")
    assert "are as they were written" in store(project, "verify")
    assert_same_features(project, finished)


def test_a_damaged_shard_of_a_pulled_clone_is_made_again(project: Project, finished: Project) -> None:
    shutil.rmtree(project.path / ".framecache")
    shard = project.path / "features/layer4/c/0/0/0/0"
    assert shard.stat().st_nlink == 2
    flip_a_bit(shard)
    store(project, "repair")
    project.dvc("repro")
    assert "are as they were written" in store(project, "verify")
    assert_same_features(project, finished)


def test_damaged_tables_are_made_again_from_the_journal(project: Project, finished: Project) -> None:
    names = ["quarantine.csv", "files.arrow"]
    tables = ("zarr.json", "index.arrow", "times.arrow", "chunks.arrow", "clips.parquet")
    names += [f"layer4/{name}" for name in tables]
    for name in names:
        flip_a_bit(project.path / "features" / name)
    output = store(project, "verify", check=False)
    assert f"{len(names)} files are damaged" in output
    assert all(f"features/{name} " in output for name in names)

    store(project, "repair")
    output = project.dvc("repro")
    assert plans(output) == ["8 unchanged"]
    assert "are as they were written" in store(project, "verify")
    assert features_md5(project) == features_md5(finished)


def test_rows_of_a_deleted_and_a_changed_clip_go_and_then_there_is_nothing_to_do(project: Project) -> None:
    project.add_video("clip2", num_frames=5, first_index=999)  # had 6, as clip5
    project.write_manifest([name for name in NAMES if name != "clip5"])
    output = project.dvc("repro", "extract")
    assert plans(output) == ["1 source changed, 6 unchanged"]
    assert "6 clips are copied to new shards" in output
    rows = zarr.open_array(project.path / "features/layer4", mode="r")[:]
    lines = pq.read_table(project.path / "features/layer4/clips.parquet").to_pylist()
    assert sum(line["num_rows"] for line in lines) == (~np.isnan(rows).all(axis=(1, 2, 3))).sum() == 27 + 5
    assert "are as they were written" in store(project, "verify")

    assert ran(project.dvc("repro", "extract")) == ["settings"]
    published = features_md5(project)
    output = project.dvc("repro", "--force", "--single-item", "extract")
    assert "new shards" not in output
    assert features_md5(project) == published


def samplings(project: Project) -> set[str]:
    """What the journal has, told apart by sampling: `all`, or every how many frames."""
    contracts = (project.path / ".framecache/contracts").glob("*/contract.json")
    found = [yaml.safe_load(path.read_text())["sampling"] for path in contracts]
    return {each if each == "all" else str(each["every"]) for each in found}


def back_to_head(project: Project) -> None:
    project.run("git", "checkout", "--quiet", "--force", "HEAD")
    project.dvc("checkout", "--force", "extract")


def test_gc_keeps_what_any_revision_or_experiment_needs_and_frees_the_rest(project: Project) -> None:
    project.set({"extract.sampling": {"every": 2}})
    project.dvc("repro", "extract")
    project.commit()  # and a revision before it has `all`
    project.dvc("exp", "run", "--name", "three", "--set-param", "extract.sampling={every:3}", "extract")
    for every in (4, 5):  # 4 is tried only; a run of 5, which is queued, was killed
        project.set({"extract.sampling": {"every": every}})
        project.extract_here()
    project.dvc("exp", "run", "--queue", "--name", "five")
    back_to_head(project)
    assert samplings(project) == {"all", "2", "3", "4", "5"}

    before = {path for path in (project.path / ".framecache").rglob("*") if path.is_file()}
    assert "queued experiment" in store(project, "gc")
    assert {path for path in (project.path / ".framecache").rglob("*") if path.is_file()} == before
    store(project, "gc", "--yes")
    assert samplings(project) == {"all", "2", "3", "5"}
    project.dvc("exp", "remove", "three")
    project.dvc("exp", "remove", "--queue")
    store(project, "gc", "--yes")
    assert samplings(project) == {"all", "2"}
    assert "are as they were written" in store(project, "verify")


def stored_dtypes(project: Project) -> set[str]:
    contracts = (project.path / ".framecache/contracts").glob("*/contract.json")
    return {yaml.safe_load(path.read_text())["dtype"] for path in contracts}


def test_gc_knows_that_a_key_may_be_missing_from_params_yaml(project: Project) -> None:
    assert "dtype" not in yaml.safe_load((project.path / "params.yaml").read_text())["extract"]
    project.dvc("exp", "run", "--name", "wide", "--set-param", "++extract.dtype=float32", "extract")
    back_to_head(project)
    store(project, "gc", "--yes")
    assert stored_dtypes(project) == {"float16", "float32"}
    project.dvc("exp", "remove", "wide")
    store(project, "gc", "--yes")
    assert stored_dtypes(project) == {"float16"}  # the default of the workspace's code

    project.extract_here()
    project.set({"extract.dtype": "float32"})
    project.extract_here()
    back_to_head(project)
    shutil.rmtree(project.path / ".dvc/cache/files/md5")
    assert "(its list of features is not in DVC's cache)" in store(project, "gc", "--yes")
    assert stored_dtypes(project) == {"float16", "float32"}  # the default of HEAD's code, which nobody knows


def test_gc_names_the_command_that_frees_what_is_shared_with_dvcs_cache(project: Project) -> None:
    project.set({"extract.sampling": {"every": 4}})
    project.dvc("repro", "extract")  # is in the workspace for a while only
    shards = {path.stat().st_ino for path in (project.path / "features").glob("layer4/c/*/0/0/0")}
    back_to_head(project)
    output = store(project, "gc", "--yes")
    assert samplings(project) == {"all"}

    cache = project.path / ".dvc/cache/files/md5"
    assert shards <= {path.stat().st_ino for path in cache.glob("*/*")}
    command = next(line for line in output.splitlines() if line.startswith("  dvc gc"))
    project.run(*command.split(), "--force")
    assert not shards & {path.stat().st_ino for path in cache.glob("*/*")}


def test_without_its_list_of_features_all_that_fits_a_revision_is_kept(project: Project) -> None:
    for every in (2, 4):
        project.set({"extract.sampling": {"every": every}})
        project.extract_here()
    project.run("git", "checkout", "--quiet", "--force", "HEAD")
    project.extract_here()
    project.set({"extract.sampling": {"every": 2}})
    project.commit()
    shutil.rmtree(project.path / ".dvc/cache/files/md5")
    assert "(its list of features is not in DVC's cache)" in store(project, "gc", "--yes")
    assert samplings(project) == {"all", "2"}
    project.run("git", "checkout", "--quiet", "HEAD~1")
    assert plans(project.extract_here()) == ["8 unchanged"]
