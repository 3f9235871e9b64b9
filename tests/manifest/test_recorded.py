"""The content of sources: what is read here, and what stands as recorded."""

import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from pipeline.errors import TextFileError
from pipeline.manifest.recorded import read_sources, scan_sources, write_sources
from pipeline.store import DigestCache
from pipeline.system.files import file_stamp

A, B = xxhash.xxh3_128_digest(b"a"), xxhash.xxh3_128_digest(b"b")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file, a folder of two images, and a folder that is no clip."""
    root = tmp_path / "corpus"
    for name, content in {"one.mp4": b"a", "two/2.png": b"b", "two/10.png": b"a", "no/text": b"x"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture
def digests(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "digests.arrow")


def test_a_file_has_one_digest_and_a_folder_one_for_each_image_in_order(
    root: Path, digests: DigestCache
) -> None:
    told: list[tuple[int, int]] = []
    found = scan_sources(
        ["two", "one.mp4"], root=root, digests=digests, on_progress=lambda *done: told.append(done)
    )
    assert found.contents == {"one.mp4": A, "two": B + A}
    assert (found.unread, found.recorded, found.unknown) == ({}, [], [])
    assert told[-1] == (3, 3)


def test_a_source_that_cannot_be_read_keeps_what_is_recorded(root: Path, digests: DigestCache) -> None:
    (root / "unfetched.mp4").symlink_to("../.git/annex/objects/x")
    recorded = {"one.mp4": B, "gone.mp4": B, "unfetched.mp4": A, "of another manifest": A}
    names = ["one.mp4", "gone.mp4", "unfetched.mp4", "new.mp4"]
    found = scan_sources(names, root=root, digests=digests, recorded=recorded)
    assert found.contents == {"one.mp4": A, "gone.mp4": B, "unfetched.mp4": A}
    assert (found.recorded, found.unknown) == (["gone.mp4", "unfetched.mp4"], ["new.mp4"])
    assert found.unread["new.mp4"] == "source new.mp4 does not exist. Correct it, or the corpus's root."
    assert "was not fetched by git-annex" in found.unread["unfetched.mp4"]

    nowhere = scan_sources(names, root=None, digests=digests, recorded=recorded)
    assert nowhere.contents == {name: recorded[name] for name in names[:3]}
    assert nowhere.unknown == ["new.mp4"]
    reason = "source new.mp4 can't be read: no root is given. Correct the corpus's root."
    assert nowhere.unread["new.mp4"] == reason


def test_a_folder_that_is_no_clip_has_a_content_that_is_the_same_wherever_it_is(
    root: Path, digests: DigestCache, tmp_path: Path
) -> None:
    here = scan_sources(["no"], root=root, digests=digests)
    (tmp_path / "elsewhere/no").mkdir(parents=True)
    assert scan_sources(["no"], root=tmp_path / "elsewhere", digests=digests) == here
    (tmp_path / "elsewhere/no/1.png").write_bytes(b"a")
    assert scan_sources(["no"], root=tmp_path / "elsewhere", digests=digests).contents == {"no": A}


def test_a_file_that_has_not_changed_is_read_again_only_when_asked_for(
    root: Path, digests: DigestCache
) -> None:
    digests._known[file_stamp(root / "one.mp4")] = B  # as where a filesystem hides a change
    assert scan_sources(["one.mp4"], root=root, digests=digests).contents == {"one.mp4": B}
    assert scan_sources(["one.mp4"], root=root, digests=digests, reread=True).contents == {"one.mp4": A}


def test_a_record_is_sorted_text_and_reads_back(tmp_path: Path) -> None:
    path, cache = tmp_path / "sources", tmp_path / "cache"
    assert read_sources(path) == {}
    contents = {"two  words": B + A, "ö.mp4": A}
    write_sources(cache, contents)
    assert cache.read_text() == f"{B.hex()},{A.hex()}  two  words\n{A.hex()}  ö.mp4\n"
    assert read_sources(cache) == contents

    path.hardlink_to(cache)
    path.chmod(0o444)
    inode = path.stat().st_ino
    write_sources(path, dict(reversed(contents.items())))
    assert path.stat().st_ino == inode
    write_sources(path, {"ö.mp4": B})
    assert (read_sources(path), read_sources(cache)) == ({"ö.mp4": B}, contents)


@pytest.mark.parametrize("line", ["ö.mp4", "abcd  a.mp4", f"{'0' * 32}  ", f"{'0' * 32},  a.mp4"])
def test_a_line_that_is_no_digest_and_source_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "sources").write_text(f"{A.hex()}  a.mp4\n{line}\n")
    with pytest.raises(TextFileError, match=r"sources: line 2 is not a digest and a source\. Restore"):
        read_sources(tmp_path / "sources")


def test_importing_it_imports_no_torch_and_no_decoder() -> None:
    program = "import sys, pipeline.manifest.recorded; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "av", "PIL", "zarr", "h5py"}.intersection(done.stdout.split())
