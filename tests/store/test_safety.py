"""Kills, damage, full disks and foreign files: the store loses nothing, never lies, and says what to do."""

import contextlib
import random
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DamagedError, DiskFullError, MissingFeaturesError, StoreError
from pipeline.store import Journal, open_view
from pipeline.store.format.records import read_record
from pipeline.store.format.tables import seal, unseal
from pipeline.store.upkeep.care import repair
from pipeline.system.files import file_digest
from tests.support import store_cases
from tests.support.features import FORMATS, assert_holds, clip_source, make_view
from tests.support.kills import count_changes, killed_after, killed_at_change
from tests.support.store_cases import (
    BAD,
    CASES,
    CONTRACT,
    OLD,
    Case,
    committed,
    damages,
    extract,
    layout_of,
    litter,
    view_state,
)

pytestmark = pytest.mark.slow

every_case = pytest.mark.parametrize(
    ("case", "container"),
    [pytest.param(case, c, id=f"{name}-{c}") for name, case in CASES.items() for c in FORMATS],
)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: a killed process, unlike a power cut, needs no slow disk."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        yield Path(folder)


@every_case
def test_a_kill_between_two_changes_of_the_disk_loses_nothing(
    memory: Path, case: Case, container: str, num_kills: int, record_property: Callable[[str, object], None]
) -> None:
    case.prepare(memory, container)
    num_changes = count_changes(case.work, memory, container)
    moments = range(1, num_changes + 1, max(1, num_changes // num_kills))
    record_property("kills", len(moments))
    for number in moments:
        with surviving(memory / str(number), case, container) as folder:
            assert killed_at_change(number, case.work, folder, container)


@every_case
def test_a_kill_at_a_random_moment_loses_nothing(
    memory: Path, case: Case, container: str, num_kills: int, record_property: Callable[[str, object], None]
) -> None:
    case.prepare(memory, container)
    started = time.monotonic()
    case.work(memory, container)
    seconds = time.monotonic() - started
    moments = random.Random(0)
    killed = 0
    for number in range(num_kills):
        with surviving(memory / str(number), case, container) as folder:
            killed += killed_after(moments.uniform(0, seconds), case.work, folder, container)
    record_property("kills", killed)


@contextlib.contextmanager
def surviving(folder: Path, case: Case, container: str) -> Iterator[Path]:
    """A folder to kill the case's work in: afterwards nothing is lost, and a rerun makes it complete."""
    folder.mkdir()
    case.prepare(folder, container)
    features_before, view_before = committed(folder, but=case.removes), view_state(folder)
    damages_before = len(damages(folder))
    yield folder
    assert features_before <= committed(folder)
    assert view_state(folder) in (view_before, ", ".join(sorted(case.clips)))
    if not damages_before:
        assert damages(folder) == []
    case.work(folder, container)
    assert_holds(folder / "features" / CONTRACT.tap, case.clips)
    assert damages(folder) == []
    assert committed(folder) == committed(folder, but=case.removes)
    # A file of the journal's own folder may be one that another process writes: only gc removes those.
    paths = [path for path in litter(folder) if case.removes != "nothing" or "journal/." not in path]
    assert paths == []


KINDS = {
    "shard": "journal/contracts/*/*/*.[sh]*",
    "record": "journal/contracts/*/*/*.record",
    "contract": "journal/contracts/*/contract.json",
    "marker": "journal/format.json",
    "digests": "journal/digests.arrow",
    "quarantine entry": "journal/quarantine/*/*",
    "index": "features/*/index.arrow",
    "times": "features/*/times.arrow",
    "chunks": "features/*/chunks.arrow",
    "master": "features/*/[zf]*",
    "table of clips": "features/*/clips.parquet",
    "list of files": "features/files.arrow",
    "quarantine list": "features/quarantine.csv",
}


@pytest.fixture(
    scope="module", params=[(c, codec) for c in FORMATS for codec in ("none", "zstd")], ids="-".join
)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a journal and a view in which there is a file of every kind."""
    folder = tmp_path_factory.mktemp("stored")
    container, codec = request.param
    extract(folder, layout_of(container, codec=codec), OLD)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_damage_of_any_file_is_found_and_never_read_as_features(
    stored: Path, kind: str, data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from(sorted(stored.glob(KINDS[kind]))))
    content = file.read_bytes()
    damaged = bytearray(content)
    if data.draw(st.booleans(), label="cut"):
        del damaged[data.draw(st.integers(0, len(content) - 1), label="size") :]
    else:
        bit = data.draw(st.integers(0, 8 * len(content) - 1), label="bit")
        damaged[bit // 8] ^= 1 << bit % 8
    file.chmod(0o644)  # a published file is read-only
    file.write_bytes(damaged)
    try:
        assert file in found_damaged(stored)
        problem = ""
        try:
            read_everything(stored)
        except StoreError as error:
            problem = str(error)
        if kind == "shard" and problem:
            assert re.search(r"Shard [0-9a-f]{32} .* is damaged.* clip '(walk|long)'", problem)
    finally:
        file.chmod(0o644)  # a published file is read-only
        file.write_bytes(content)


def found_damaged(folder: Path) -> list[Path]:
    """The files that `verify` names; a newer version ends it at once."""
    try:
        return [damage.path for damage in damages(folder)]
    except StoreError as error:
        return [Path(str(error).removesuffix(" Upgrade it.").partition(" has format version ")[0])]


def read_everything(folder: Path) -> None:
    """All that is read without an error is right."""
    journal = Journal(folder / "journal")
    assert journal.contracts() == [CONTRACT]
    for layout in journal.layouts(CONTRACT):
        keys = {key for record in journal.records(CONTRACT, layout).values() for key in record.clip_sources()}
        assert keys == {clip_source(clip_id).key for clip_id in OLD}
    assert set(journal.quarantined(CONTRACT.forward_digest())) <= {clip_source(BAD).key}
    assert journal.digest_cache().digest(store_cases.__file__) == file_digest(store_cases.__file__)
    assert_holds(folder / "features" / CONTRACT.tap, OLD)


def test_what_is_undamaged_passes(stored: Path) -> None:
    assert damages(stored) == []
    read_everything(stored)
    assert all(any(stored.glob(KINDS[kind])) for kind in KINDS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 KiB; `resize` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "framecache-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk can't be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size_kb: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_kb}k", str(disk)], check=True)


@pytest.mark.parametrize("container", FORMATS)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(disk: Path, container: str) -> None:
    layout = layout_of(container, rows_per_chunk=64, rows_per_shard=128)
    clips = {f"clip{number}": 100 for number in range(60)}
    kept: set[tuple[str, str, bytes]] = set()
    for size_kb in range(4, 120, 12):
        resize(disk, size_kb)
        with pytest.raises(
            DiskFullError, match=rf"No space left on device while writing {disk}/\S+: 0 MB are free"
        ):
            extract(disk, layout, clips)
        assert kept <= committed(disk)
        kept = committed(disk)
    assert kept
    resize(disk, 4000)
    extract(disk, layout, clips)
    assert_holds(disk / "features" / CONTRACT.tap, clips)
    assert damages(disk) == []


@pytest.mark.parametrize("container", FORMATS)
def test_a_quota_is_named_like_a_full_disk(tmp_path: Path, container: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        with pytest.raises(DiskFullError, match=f"File too large while writing {tmp_path}/journal"):
            extract(tmp_path, layout_of(container, rows_per_shard=1024), {"clip": 300})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    extract(tmp_path, layout_of(container, rows_per_shard=1024), {"clip": 300})
    assert_holds(tmp_path / "features" / CONTRACT.tap, {"clip": 300})


def test_a_shard_that_the_journal_has_lost_is_named_and_repair_has_it_made_again(tmp_path: Path) -> None:
    extract(tmp_path, layout_of("zarr"), OLD)
    lost = min(tmp_path.glob("journal/contracts/*/*/*.shard"))
    lost.unlink()
    with pytest.raises(DamagedError, match=rf"Shard {lost.stem} .* is missing"):
        extract(tmp_path, layout_of("zarr"), OLD)
    repair(tmp_path / "journal", view=tmp_path / "features", find_copies=lambda _: [], on_wait=print)
    extract(tmp_path, layout_of("zarr"), OLD)
    assert_holds(tmp_path / "features" / CONTRACT.tap, OLD)
    assert damages(tmp_path) == []


def test_what_is_not_a_view_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingFeaturesError, match="No features at "):
        open_view(tmp_path / "nowhere")
    zarr.create_array(tmp_path / "foreign", shape=(3,), dtype="float16")
    (tmp_path / "empty").mkdir()
    for name in ("foreign", "empty"):
        with pytest.raises(MissingFeaturesError, match=f"{name} is no framecache view"):
            open_view(tmp_path / name)


@pytest.mark.parametrize("container", FORMATS)
def test_a_view_whose_shards_were_not_pulled_is_refused_with_the_remedy(
    tmp_path: Path, container: str
) -> None:
    path = make_view(tmp_path, {"walk": 5}, format=container)
    for file in [*path.glob("c/*/0/0/0"), *path.glob("shards/*")]:
        file.unlink()
    with pytest.raises(MissingFeaturesError, match="is missing"):
        open_view(path)


def test_what_a_newer_version_wrote_is_refused_with_the_remedy(tmp_path: Path) -> None:
    extract(tmp_path, layout_of("zarr"), OLD)
    record = next(tmp_path.glob("journal/contracts/*/*/*.record"))
    index = tmp_path / "features" / CONTRACT.tap / "index.arrow"
    for file in (record, index):
        table, metadata = unseal(file.read_bytes(), path=file)
        newer = {**metadata, "format_version": b"99"}
        file.unlink()  # the record has another name in the view
        file.write_bytes(seal(table, newer))
    (tmp_path / "journal/format.json").write_text('{"format_version": 99}')
    for file, use in (
        (record, lambda: read_record(record)),
        (index, lambda: open_view(index.parent)),
        (tmp_path / "journal/format.json", lambda: Journal(tmp_path / "journal")),
    ):
        with pytest.raises(StoreError, match=f"{file} has format version 99.* Upgrade it"):
            use()
