import os
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash

from pipeline.store import DigestCache, digests
from pipeline.store.format.tables import seal
from pipeline.system.files import atomic_path, combined_digest, file_digest, link, write_atomically


def test_an_interrupted_write_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def fail_in_the_middle() -> None:
        with atomic_path(path) as partial:
            partial.write_bytes(b"ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_the_same_file_even_when_it_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "a").chmod(0o444)
    link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")


def test_a_link_to_another_filesystem_is_a_symlink_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.fail("this test needs /dev/shm on a filesystem of its own")
    (tmp_path / "a").write_bytes(b"x")
    target = shared_memory / f"framecache-test-{os.getpid()}"
    try:
        link(tmp_path / "a", target)
        assert target.is_symlink()
        assert target.read_bytes() == b"x"
        assert "is a symlink" in caplog.text
    finally:
        target.unlink()


@pytest.fixture
def old_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be remembered: nothing can set their ctime back."""
    monkeypatch.setattr(digests, "_RACY_NS", 0)


@pytest.mark.usefixtures("old_files")
def test_digests_are_of_content_and_remembered_by_stat(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(b"frames")
    cache = DigestCache(tmp_path / "digests.arrow")
    assert cache.unknown([str(path)]) == {str(path): 6}
    assert cache.digest(path) == file_digest(path) == xxhash.xxh3_128_digest(b"frames")
    cache.save()

    again = DigestCache(tmp_path / "digests.arrow")
    assert again.unknown([str(path)]) == {}
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert again.unknown([str(path)]) == {str(path): 6}
    again.digest(path)
    assert again.unknown([str(path)]) == {}
    again.forget([str(path), "missing"])
    assert again.unknown([str(path), "missing"]) == {str(path): 6}


@pytest.mark.usefixtures("old_files")
@pytest.mark.parametrize("how", ["cp -a", "by hand"])
def test_other_content_of_the_same_size_inode_and_mtime_is_seen(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "video", tmp_path / "other"
    path.write_bytes(b"frames")
    other.write_bytes(b"FRAMES")
    shutil.copystat(path, other)
    cache = DigestCache(tmp_path / "digests.arrow")
    cache.digest(path)
    before = path.stat()
    if how == "cp -a":
        subprocess.run(["cp", "-a", other, path], check=True)
    else:
        path.write_bytes(b"FRAMES")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    for name in ("st_ino", "st_size", "st_mtime_ns"):
        assert getattr(after, name) == getattr(before, name)
    assert cache.digest(path) == xxhash.xxh3_128_digest(b"FRAMES")


def test_digests_of_an_earlier_version_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(b"frames")
    stat = path.stat()
    columns = {"device": stat.st_dev, "inode": stat.st_ino, "size_bytes": 6, "mtime_ns": stat.st_mtime_ns}
    table = pa.table({**{name: [value] for name, value in columns.items()}, "digest": [b"0" * 16]})
    (tmp_path / "digests.arrow").write_bytes(seal(table, {}))
    cache = DigestCache(tmp_path / "digests.arrow")
    assert cache.digest(path) == xxhash.xxh3_128_digest(b"frames")
    cache.save()


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "video"
    path.write_bytes(b"one")
    cache = DigestCache(tmp_path / "digests.arrow")
    cache.digest(path)
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.digest(path) == xxhash.xxh3_128_digest(b"two")
    cache.save()


def test_the_combined_digest_depends_on_order_and_on_the_text() -> None:
    one, two = b"1" * 16, b"2" * 16
    found = {
        combined_digest([one, two]),
        combined_digest([two, one]),
        combined_digest([one, two], extra="x"),
    }
    assert len(found) == 3
