"""The plan, and `--plan`, which tells of a run without doing anything."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.extraction import damaged_key, forecast
from pipeline.extraction.plan import clip_key, make_plan, usable_key
from pipeline.extraction.targets import Target
from pipeline.manifest import Clip
from pipeline.store import ClipSource, DigestCache, Journal, Quarantined, committing
from pipeline.system.files import file_stamp
from stages import settings
from stages.extract_plan import show_plan
from stages.project.asked import fitting
from tests.support.extraction import sources_of
from tests.support.features import clip_maps, frame_times, make_contract, make_layout, make_writer
from tests.support.media import write_image
from tests.support.project import NAMES, Project, plans

KEY = b"k" * 16


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder with its inode, size and time of change."""
    stats = {str(path): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def plan_text(project: Project, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--plan` prints; it must change nothing."""
    before = tree(project.path)
    show_plan()
    assert tree(project.path) == before
    return capsys.readouterr().out


def test_plan_tells_what_a_run_would_do_and_writes_nothing(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(forecast, "_COMPUTE_SECONDS", 0.1)
    assert plan_text(project, capsys) == "Plan:\n  8 unchanged\nNothing to compute.\n"

    project.add_video("clip3", num_frames=7, first_index=999)
    project.add_video("added", num_frames=9)
    project.write_manifest([*NAMES, "added"])
    text = plan_text(project, capsys)
    assert "Plan:\n  1 new\n  1 source changed\n  7 unchanged\n" in text
    assert "Frames: 16, counted in 2 of 2 clips.\n" in text
    assert f"features/layer4: {16 * 512 * 2 / 1000:.3g} kB more, before compression.\n" in text
    assert re.search(r"Time: about 0:00:\d\d on cpu: a decoder gives \d+ frames/s, the network \d+", text)

    # Another layout is copied; so is what only the published features have: the journal is gone.
    project.set({"extract.store.codec": "lz4"})
    assert "1 new, 1 source changed, 0 unchanged, 7 to copy" in plans(plan_text(project, capsys))[0]
    shutil.rmtree(project.path / ".framecache")
    assert "2 new, 0 unchanged, 7 to copy" in plans(plan_text(project, capsys))[0]

    project.set({"extract.sampling": {"count": 2}})
    text = plan_text(project, capsys)
    assert plans(text) == ["9 new, 0 unchanged"]
    assert "Frames: 18, counted in 9 of 9 clips.\n" in text


def test_sources_are_read_again_when_asked_for(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    # As where a filesystem hides that a file was changed: what is remembered is of other content.
    cache = Journal(project.path / ".framecache").digest_cache()
    for path in project.videos.iterdir():
        cache._known[file_stamp(path)] = path.name.encode().ljust(16)
    cache._changed = True
    cache.save()
    show_plan()
    assert "Plan:\n  8 source changed\n" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["settings", "--read-sources"])
    settings.main()
    show_plan()
    assert "Plan:\n  8 unchanged\n" in capsys.readouterr().out


def test_a_clip_of_which_a_crash_left_the_beginning_has_not_changed(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"video")
    clip = Clip(clip_id="a", sources=("a.mp4",), split="train")
    digests = DigestCache(tmp_path / "digests.arrow")
    contract = make_contract()
    layout = make_layout(contract, rows_per_shard=32)
    journal = Journal(tmp_path / "journal")
    source = ClipSource(
        clip_key(clip, sources_of([clip], root=tmp_path, digests=digests).contents), "a", "a.mp4"
    )
    writer = make_writer(journal, contract, layout)
    with committing(writer):
        writer.append(source, clip_maps("a", 40), frame_times(40), final=False)
    assert len(journal.records(contract, layout)) == 1  # of the shard that was full

    def reasons() -> list[str]:
        targets = [Target(contract, layout)]
        sources = sources_of([clip], root=tmp_path, digests=digests)
        found = make_plan([clip], sources=sources, targets=targets, journal=journal)
        return [planned.reason for planned in found.to_extract]

    assert reasons() == ["new"]
    (tmp_path / "a.mp4").write_bytes(b"another video")
    assert reasons() == ["source changed"]


def test_a_clip_that_is_known_to_be_broken_is_not_called_new(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    clip = Clip(clip_id="a", sources=("a.mp4",), split="train")
    digests = DigestCache(tmp_path / "digests.arrow")
    contract = make_contract()
    layout = make_layout(contract, rows_per_shard=32)
    journal = Journal(tmp_path / "journal")
    key = clip_key(clip, sources_of([clip], root=tmp_path, digests=digests).contents)
    journal.directory(contract, layout)
    rejected = Quarantined("a", "a.mp4", "it has no frames", num_recovered=0)
    journal.quarantine(contract.forward_digest(), key, rejected)

    def reasons(target: Target, **options: set[bytes]) -> list[str]:
        sources = sources_of([clip], root=tmp_path, digests=digests)
        found = make_plan([clip], sources=sources, targets=[target], journal=journal, **options)
        return [planned.reason for planned in found.to_extract]

    assert reasons(Target(contract, layout)) == []
    other = make_contract(sampling={"every": 2})
    assert reasons(Target(other, layout)) == ["sampling changed: all -> {'every': 2}"]
    (tmp_path / "a.mp4").write_bytes(b"no video either")
    assert reasons(Target(contract, layout)) == ["source changed"]
    (tmp_path / "a.mp4").write_bytes(b"no video")
    journal.forgive(contract.forward_digest(), [key])
    assert reasons(Target(contract, layout), retried={key}) == ["quarantined before, tried again"]


@pytest.mark.parametrize(
    ("damaged", "min_frames", "num_recovered", "expected"),
    [
        ("drop", 1, 9, None),
        ("keep", 1, 9, damaged_key(KEY)),
        ("keep", 1, 0, None),
        ("keep", 10, 9, None),
    ],
)
def test_what_is_kept_of_a_damaged_clip_has_a_key_of_its_own(
    damaged: str, min_frames: int, num_recovered: int, expected: bytes | None
) -> None:
    rejected = {KEY: Quarantined("clip", "clip.mp4", "damaged", num_recovered)}
    found = usable_key(KEY, rejected, damaged=damaged, min_frames=min_frames)  # type: ignore[arg-type]
    assert found == expected
    assert usable_key(b"o" * 16, rejected, damaged="drop", min_frames=1) == b"o" * 16


def test_a_damaged_clip_that_crashes_the_decoder_when_it_is_kept_is_left_out() -> None:
    clip = Quarantined("clip", "clip.mp4", "damaged", 9)
    rejected = {KEY: clip, damaged_key(KEY): clip}
    assert usable_key(KEY, rejected, damaged="keep", min_frames=1) is None


def test_gc_keeps_what_parameters_ask_for_in_another_precision_and_backend() -> None:
    extract = {"taps": ["layer4"], "sampling": "all", "preprocessing": {"resize": 32, "crop": 32}}
    extract |= {"precision": "bfloat16", "backend": "inductor"}
    fits = fitting(yaml.safe_dump({"weights": {"arch": "resnet18"}, "extract": extract}).encode())
    assert fits(make_contract(precision="bfloat16", backend="inductor"))
    assert not fits(make_contract())


def test_a_folder_that_is_no_clip_gets_another_key_when_it_is_put_in_order(tmp_path: Path) -> None:
    """Else its features would stay quarantined."""
    for name in ("img_1", "img_2", "flow_1", "flow_2"):
        write_image(tmp_path / f"clip/{name}.png", index=1)
    (tmp_path / "empty").mkdir()
    digests = DigestCache(tmp_path / "digests")

    def key(folder: str) -> bytes:
        clip = Clip(clip_id="a", sources=(folder,), split="train")
        return clip_key(clip, sources_of([clip], root=tmp_path, digests=digests).contents)

    mixed = key("clip")
    assert key("clip") == mixed != key("empty")
    for name in ("flow_1", "flow_2"):
        (tmp_path / f"clip/{name}.png").rename(tmp_path / f"clip/img_{name[-1]}0.png")
    renamed = key("clip")  # four equal images, as before
    assert renamed != mixed
    (tmp_path / "clip/img_10.png").unlink()
    assert key("clip") not in (mixed, renamed)
