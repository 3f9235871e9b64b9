"""Places that are shared, read-only, full or not there: what works, and the sentence where it can't."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, JournalError, StoreError, os_error_text
from pipeline.store import Journal
from pipeline.store.upkeep.care import repair
from pipeline.system.files import file_lock, make_folder, remove_folder, write_atomically
from stages import console
from stages.places import journal_path, training_folder
from stages.project.sharing import share_journal
from stages.project.visible import corpus_root, visible_manifest
from tests.support.features import fill
from tests.support.sharing import (
    ANN,
    BOB,
    CONTRACT,
    GROUP,
    LAYOUT,
    act_as,
    publish_all,
    remove_all,
    use_journal,
)

pytestmark = pytest.mark.slow

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as two users")


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder that a group shares: rwxrwsr-x."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        path = Path(folder)
        path.chmod(0o755)
        (path / "lab").mkdir()
        os.chown(path / "lab", -1, GROUP if os.geteuid() == 0 else -1)
        (path / "lab").chmod(0o2775)
        yield path / "lab"


@pytest.fixture
def journal_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is a project without features; its journal's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRAMECACHE_JOURNAL", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / ".framecache"


@needs_root
def test_members_of_a_group_use_and_clean_each_others_journal(lab: Path) -> None:
    journal = lab / "journal"
    act_as(ANN, use_journal, journal, "ann")
    act_as(BOB, use_journal, journal, "bob")
    for path in (journal, *journal.rglob("*")):
        assert path.stat().st_gid == GROUP, path
        assert path.stat().st_mode & 0o060 == 0o060, path
    for user in (ANN, BOB):
        own = lab.parent / str(user)
        own.mkdir()
        os.chown(own, user, user)
        act_as(user, publish_all, journal, own / "features")
    act_as(BOB, remove_all, journal)


@needs_root
def test_another_member_publishes_files_that_dvc_has_made_read_only(lab: Path) -> None:
    for name, user in {"ann": ANN, "bob": BOB}.items():
        act_as(user, use_journal, lab / "journal", name)
    for path in (*lab.rglob("*.shard"), *lab.rglob("*.record")):
        path.chmod(0o444)  # Linux lets only the owner hardlink them
    act_as(BOB, publish_all, lab / "journal", lab / "features")


@needs_root
def test_what_lies_in_a_journal_that_may_only_be_read_is_published(lab: Path) -> None:
    journal = lab / "journal"
    for name in ("ann", "bob"):
        act_as(ANN, use_journal, journal, name)
    for path in (journal, *journal.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o022)
    before = {path: path.stat().st_mtime_ns for path in journal.rglob("*")}
    act_as(BOB, publish_all, journal, lab / "features")
    assert {path: path.stat().st_mtime_ns for path in journal.rglob("*")} == before


def test_only_a_folder_that_a_group_may_write_to_hands_that_right_on(lab: Path) -> None:
    def mode_in(folder: Path) -> tuple[int, int, int]:
        """Of a file, a folder and a lock that are made there under umask 022."""
        write_atomically(folder / "file", b"")
        make_folder(folder / "a/b")
        with file_lock(folder / "lock", on_wait=print):
            pass
        paths = (folder / "file", folder / "a/b", folder / "lock")
        return tuple(stat.S_IMODE(path.stat().st_mode) for path in paths)  # type: ignore[return-value]

    previous = os.umask(0o022)
    try:
        assert mode_in(lab) == (0o664, 0o2775, 0o664)
        for name, mode in {"private": 0o755, "temporary": 0o1777}.items():
            (lab / name).mkdir()
            (lab / name).chmod(mode)
            assert mode_in(lab / name) == (0o644, 0o755, 0o644), name
    finally:
        os.umask(previous)


def test_a_file_with_another_name_keeps_its_mode(lab: Path) -> None:
    fill(Journal(lab / "one"), CONTRACT, LAYOUT, {"ann": 5})
    (shard,) = lab.rglob("*.shard")
    shard.chmod(0o444)
    record = shard.with_suffix(".record")
    assert Journal(lab / "two").adopt(record.read_bytes(), shard, origin="here")
    assert shard.stat().st_nlink == 2
    assert stat.S_IMODE(shard.stat().st_mode) == 0o444


@pytest.mark.parametrize("shared", ["group", None])
def test_a_journal_is_shared_where_dvcs_cache_is(journal_folder: Path, shared: str | None) -> None:
    (journal_folder.parent / ".dvc").mkdir()
    (journal_folder.parent / ".dvc/config").write_text(f"[cache]\n    shared = {shared}\n" if shared else "")
    previous = os.umask(0o022)
    try:
        for _ in ("one that is made later", "one that was made before"):
            share_journal(journal_path())
            fill(Journal(journal_path()), CONTRACT, LAYOUT, {"ann": 5})
            for path in journal_folder.rglob("*"):
                assert bool(path.stat().st_mode & stat.S_IWGRP) == bool(shared), path
            remove_folder(journal_folder)
            fill(Journal(journal_path()), CONTRACT, LAYOUT, {"ann": 5})
    finally:
        os.umask(previous)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_filesystem_without_locks_is_named_with_the_remedy(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: object, _kind: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        pytest.raises(
            JournalError, match=r"/journal/locks/journal.lock can't be locked: .* has no file locks"
        ),
        Journal(tmp_path / "journal").lock("0" * 32, on_wait=print),
    ):
        pass


def test_repair_removes_nothing_when_a_file_can_not_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "journal"
    fill(Journal(journal), CONTRACT, LAYOUT, {"ann": 5})
    before = set(journal.rglob("*"))
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.suffix == ".record":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(StoreError, match=r"record can't be read \(Permission denied\). It may be good"):
        repair(journal, view=tmp_path / "features", find_copies=list, on_wait=print)
    assert before <= set(journal.rglob("*"))


def test_a_relative_journal_is_the_workspaces_in_experiments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("FRAMECACHE_JOURNAL", "mine")
    assert journal_path() == Path("mine")
    monkeypatch.setenv("DVC_ROOT", "/workspace")
    assert journal_path() == Path("/workspace/mine")
    monkeypatch.setenv("FRAMECACHE_JOURNAL", "/scratch/mine")
    assert journal_path() == Path("/scratch/mine")
    monkeypatch.setenv("FRAMECACHE_JOURNAL", "")
    assert journal_path() == Path("/workspace/.framecache")


def test_a_journal_that_is_a_file_is_refused_with_the_remedy(journal_folder: Path) -> None:
    journal_folder.write_text("")
    with pytest.raises(ConfigError, match=r"journal .framecache is a file.*FRAMECACHE_JOURNAL="):
        journal_path()


def test_a_training_keeps_its_state_beside_a_journal_that_is_read_only(
    journal_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FRAMECACHE_JOURNAL", "elsewhere")
    (journal_folder.parent / "elsewhere").mkdir()
    assert training_folder() == Path("elsewhere/training")
    monkeypatch.setattr(os, "access", lambda path, _mode: "elsewhere" not in str(path))
    assert training_folder() == Path(".framecache/training")
    assert "elsewhere can't be written" in caplog.text


def test_a_manifest_that_experiments_can_not_see_is_refused_until_git_tracks_it(
    journal_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")  # git's messages are understood in any language
    manifest = journal_folder.parent / "mine.csv"
    manifest.write_text("clip_id,source,split\n")
    assert visible_manifest("mine.csv") == Path("mine.csv")  # without git there are no experiments
    subprocess.run(["git", "init", "--quiet"], check=True)
    with pytest.raises(
        ConfigError, match=r"'mine.csv' is tracked by neither.*`git add mine.csv`.*`git commit`"
    ):
        visible_manifest("mine.csv")
    assert visible_manifest(str(manifest)) == manifest
    subprocess.run(["git", "add", "mine.csv"], check=True)
    assert visible_manifest("mine.csv") == Path("mine.csv")


def test_a_relative_root_is_in_the_experiments_folder_or_else_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, project = tmp_path / "experiment/videos", tmp_path / "project/videos"
    own.mkdir(parents=True)
    monkeypatch.chdir(own.parent)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert corpus_root("videos") == Path("videos")
    monkeypatch.setenv("DVC_ROOT", str(project.parent))
    assert corpus_root("videos") == project  # which is missing, too
    (own / ".gitkeep").touch()
    assert corpus_root("videos") == project
    (own / "README.md").touch()
    assert corpus_root("videos") == project
    (own / "of a day").mkdir()
    (own / "of a day/a.mp4").touch()
    assert corpus_root("videos") == Path("videos")
    assert corpus_root(str(project)) == project


ERRORS = {
    "PermissionError": (
        PermissionError(errno.EACCES, "Permission denied", "/data/.a.json.partial-12ab34cd"),
        "Permission denied: /data/a.json. Have its owner give you access",
    ),
    "read-only": (
        OSError(errno.EROFS, "Read-only file system", b"/data/a"),
        "Read-only file system: /data/a. Choose a place that can be written to.",
    ),
    "missing": (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "Correct the path"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. What was committed"),
    "files": (OSError(errno.EMFILE, "Too many open files"), "Allow more open files (`ulimit -n 65536`)"),
    "name": (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa. Choose a shorter name."),
    "folder": (
        IsADirectoryError(errno.EISDIR, "Is a directory", "a"),
        "Is a directory: a. A folder is where",
    ),
    "two names": (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "link: a -> b."),
    "journal": (
        PermissionError(errno.EACCES, "Permission denied", ".framecache/locks/x"),
        "This path is in the journal. FRAMECACHE_JOURNAL=/another/folder",
    ),
}


@pytest.mark.usefixtures("journal_folder")
@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_the_system_reaches_people_as_a_sentence(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error, expected = ERRORS[name]

    def stage() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        console.run(stage)
    assert exit_.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert "Traceback" not in message
    monkeypatch.setenv("FRAMECACHE_TRACEBACK", "1")
    with pytest.raises(type(error)):
        console.run(stage)


@pytest.mark.parametrize("error", [OSError("what?"), OSError(errno.EBADF, "Bad file descriptor")])
def test_an_error_that_only_a_bug_can_cause_keeps_its_traceback(error: OSError) -> None:
    def stage() -> None:
        raise error

    assert os_error_text(error) is None
    with pytest.raises(OSError, match=str(error.args[-1])[:4]):
        console.run(stage)


def test_a_reader_that_leaves_early_ends_a_stage_in_silence() -> None:
    program = "from stages import console; console.run(lambda: print('x' * 100_000))"
    command = f'{sys.executable} -c "{program}" | true; echo status ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout == "status 1\n"
