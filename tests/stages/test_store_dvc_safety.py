"""Copies of features that get lost, other filesystems and parallel runs, shown by driving the real DVC."""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import stages.train
from pipeline.store import open_view
from pipeline.store.upkeep.care import journal_checks, verify, view_checks
from stages.project.cache import Cache
from tests.stages.test_dvc import plan_of, ran, shard_inodes
from tests.support.in_process import run_main
from tests.support.project import NAMES, Project


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another filesystem than tests' folders."""
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir():
        pytest.skip("there is no /dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        yield Path(folder)


def features(project: Project) -> dict[str, bytes]:
    """The features of every clip, read from an undamaged view."""
    assert verify(view_checks(project.path / "features")) == []
    with open_view(project.path / "features/layer4") as view:
        assert view.clip_ids() == NAMES
        return {clip_id: view.read(clip_id).tobytes() for clip_id in view.clip_ids()}


def extract_again(project: Project, **environment: str) -> str:
    """Have DVC run the stage, which changes no feature; the plan."""
    project.set({"extract.max_failed_share": 0.4})
    output = project.dvc("repro", "extract", **environment)
    assert "Traceback" not in output
    return plan_of(output)


def test_nothing_is_computed_while_a_copy_of_the_features_is_left(project: Project) -> None:
    before = features(project)
    journal, view, cache = (project.path / name for name in (".framecache", "features", ".dvc/cache"))
    for path in journal.rglob("*.shard"):
        assert path.stat().st_mode & 0o222 == 0  # DVC protects its cache, and this is the same file

    shutil.rmtree(journal)
    assert ran(project.dvc("repro")) == ["settings"]
    assert extract_again(project) == "8 unchanged"  # from DVC's cache
    assert features(project) == before

    shutil.rmtree(view)
    status, _, error = run_main(stages.train.main, project.path)
    assert status == 1
    assert re.search(r"^error: No features at features/layer4. Run `dvc repro extract`", error, re.MULTILINE)
    assert "Traceback" not in error
    project.dvc("checkout", "features")
    assert features(project) == before

    shutil.rmtree(cache)
    shutil.rmtree(view)
    assert plan_of(project.extract_here()) == "8 unchanged"  # from the journal
    assert features(project) == before
    assert verify(journal_checks(journal)) == []

    for path in (journal, view):
        shutil.rmtree(path)
    assert plan_of(project.extract_here()) == "8 new, 0 unchanged"
    assert features(project) == before


def test_a_journal_on_another_filesystem_serves_until_every_copy_is_gone(
    project: Project, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = elsewhere / "journal"
    there = {"FRAMECACHE_JOURNAL": str(journal)}
    project.set({"extract.sampling": {"every": 2}, "extract.store.format": "hdf5"})
    output = project.dvc("repro", "extract", **there)
    assert "0.h5 is a symlink to /dev/shm" in output
    before = features(project)
    assert ran(project.dvc("repro", "extract", **there)) == ["settings"]

    shutil.rmtree(journal)
    assert features(project) == before  # DVC's cache has the bytes, not a link to them
    assert extract_again(project, **there) == "8 unchanged"  # adopted by copying
    assert features(project) == before

    shutil.rmtree(project.path / ".dvc/cache")
    monkeypatch.setenv("FRAMECACHE_JOURNAL", str(journal))
    assert plan_of(project.extract_here()) == "8 unchanged"
    assert features(project) == before
    assert verify(journal_checks(journal)) == []


def test_extractions_with_different_parameters_share_a_journal_at_once(
    project: Project, tmp_path: Path
) -> None:
    projects = [project, project.copy(tmp_path / "another")]
    there = {"FRAMECACHE_JOURNAL": str(tmp_path / "journal")}
    processes = []
    for number, each in enumerate(projects):
        each.set({"extract.sampling": {"every": 2 + number}})
        processes.append(
            subprocess.Popen(
                ["python", "-m", "stages.extract"],
                cwd=each.path,
                env={**each.environment, **there},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for each, output in zip(projects, outputs, strict=True):
        assert re.fullmatch(r"8 sampling changed: .*, 0 unchanged", plan_of(output))
        assert "Waiting" not in output
        features(each)
    assert verify(journal_checks(tmp_path / "journal")) == []
    assert len(list((tmp_path / "journal/contracts").iterdir())) == 3  # with the one that both adopted


def test_dvc_finds_new_features_in_its_cache_and_puts_none_there(project: Project) -> None:
    """Two runs of DVC that put the same file there at once can empty it."""
    project.set({"extract.sampling": {"every": 2}})
    project.dvc("repro", "--no-commit", "extract")
    cache = Cache.of(project.path)
    files = [path for path in (project.path / "features").rglob("*") if path.is_file()]
    stored = [cache.object(hashlib.md5(path.read_bytes()).hexdigest()) for path in files]
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o444}
    shards = shard_inodes(project.path / "features")
    assert shards
    assert shards <= {path.stat().st_ino for path in stored}


def test_a_stage_that_finds_the_disk_full_says_so_in_one_sentence_and_goes_on_later(project: Project) -> None:
    project.set({"extract.sampling": {"every": 2}})
    # No file may have more than 8 KiB. The real Python, as a warm one has the limits of its server.
    limited = f"ulimit -f 8; exec {sys.executable} -m stages.extract"
    output = project.run("bash", "-c", limited, check=False, PYTHONDONTWRITEBYTECODE="1")
    message = output.splitlines()[-1]
    assert re.match(
        r"error: File too large while writing .framecache/contracts/.* \d+ MB are free\.", message
    )
    assert "Traceback" not in output
    output = project.extract_here()
    assert plan_of(output) == "8 sampling changed: all -> {'every': 2}, 0 unchanged"
    features(project)
