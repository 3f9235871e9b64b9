"""What goes wrong in extraction, in the real stage under the real DVC: crashes, hangs, signals, bad clips."""

import csv
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.store import open_view, stored_keys
from pipeline.store.format.records import read_record
from tests.support.media import write_video
from tests.support.project import NAMES, Project, plans

pytestmark = pytest.mark.slow

# Loaded by every Python process of a test that asks for it: av.open does to extraction what FAULTS says,
# and of the files that UNREADABLE names no bytes can be read.
FAULTY_DECODER = """
import builtins, errno, os, sys
if "stages.extraction" in sys.orig_argv and os.environ.get("FAULTS"):
    import ctypes, json, pathlib, signal, time
    import av
    faults = json.loads(os.environ["FAULTS"])
    real_open = av.open
    def open_(file, *args, **kwargs):
        fault = faults.get(pathlib.Path(str(file)).stem)
        if fault in ("crash", "hang", "killed"):
            time.sleep(0.3)  # until the other decoders have a clip too
        match fault:
            case "crash":
                ctypes.string_at(0)
            case "hang":  # in C, with the interpreter's lock held
                ctypes.PyDLL(None).sleep(600)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "memory":
                bytearray(1 << 62)
            case "slow":
                sys.modules["stages.bars"]._LINE_SECONDS = 0  # the test waits for a line
                time.sleep(0.5)
            case "wait":
                time.sleep(600)
        return real_open(file, *args, **kwargs)
    av.open = open_
if "stages.extraction" in sys.orig_argv and os.environ.get("UNREADABLE"):
    real = builtins.open
    def flaky(path, *args, **kwargs):
        if str(path).endswith(os.environ["UNREADABLE"]):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *args, **kwargs)
    builtins.open = flaky
"""


@pytest.fixture
def faulty(tmp_path: Path) -> dict[str, str]:
    """The environment in which FAULTS works."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(FAULTY_DECODER)
    return {"PYTHONPATH": str(tmp_path / "site")}


@pytest.fixture
def fresh(project: Project) -> Project:
    """A project whose clips have no features in the way that is asked for now."""
    project.set({"extract.sampling": {"max_frames": 1000}})
    return project


def plan_of(output: str) -> str:
    plan = plans(output)[-1]
    return plan.replace("sampling changed: all -> {'max_frames': 1000}", "to compute")


def quarantine(project: Project) -> dict[str, dict[str, str]]:
    with (project.path / "features/quarantine.csv").open(newline="") as file:
        return {row.pop("clip_id"): row for row in csv.DictReader(file)}


def clip_ids(project: Project) -> list[str]:
    with open_view(project.path / "features/layer4") as view:
        return view.clip_ids()


def test_clips_that_crash_hang_or_are_killed_stop_neither_the_others_nor_the_next_run(
    fresh: Project, faulty: dict[str, str]
) -> None:
    project = fresh
    project.set_machine(batch_size=8, stall_seconds=5, num_decoders=4)
    (project.videos / "clip5.mp4").write_bytes(b"not a video" * 100)
    faults = {"clip1": "crash", "clip2": "hang", "clip3": "killed", "clip4": "memory"}
    output = project.dvc("repro", "extract", check=False, **faulty, FAULTS=json.dumps(faults))
    assert "3 clips failed, possibly for a passing reason." in output
    assert "  clip2: the run made no progress for 5 s on this clip alone" in output
    assert "  clip3: the run was killed (SIGKILL, as for want of memory) on this clip alone" in output
    assert "  clip4: out of memory" in output
    assert not (project.path / "features").exists()

    output = project.extract_here()  # whatever it was has passed
    assert plan_of(output) == "3 to compute, 3 unchanged, 2 quarantined before"
    assert clip_ids(project) == ["clip0", "clip2", "clip3", "clip4", "clip6", "clip7"]
    found = quarantine(project)
    assert found["clip1"] == {
        "source": "clip1.mp4",
        "reason": "the run crashed (SIGSEGV) on this clip alone",
        "num_recovered": "0",
        "policy": "drop",
    }
    assert found["clip5"]["reason"].startswith("videos/clip5.mp4 can't be decoded")

    output = project.extract_here("--retry-quarantined")
    assert plan_of(output) == "2 quarantined before, tried again, 6 unchanged"
    assert clip_ids(project) == [name for name in NAMES if name != "clip5"]
    assert list(quarantine(project)) == ["clip5"]


def test_clips_whose_sources_cannot_be_read_are_named_after_the_others_are_kept(
    fresh: Project, faulty: dict[str, str]
) -> None:
    project = fresh
    for name in ("clip1", "clip2"):
        (project.videos / f"{name}.mp4").unlink()
    (project.videos / "clip2.mp4").symlink_to("../.git/annex/objects/Xk/clip2.mp4")
    project.add_video("clip3", first_index=503)
    stage = ("python", "-m", "stages.extract")
    output = project.run(*stage, check=False, **faulty, UNREADABLE="clip3.mp4")
    assert plan_of(output) == "5 to compute, 0 unchanged, 3 unreadable"
    assert "3 clips failed, possibly for a passing reason." in output
    assert "  clip1: source clip1.mp4 does not exist. Correct it, or the corpus's root." in output
    assert "  clip2: source clip2.mp4 was not fetched by git-annex" in output
    assert "git annex get" in output
    assert re.search(r"  clip3: .*Input/output error", output)

    for number in (1, 2):
        (project.videos / f"clip{number}.mp4").unlink(missing_ok=True)
        project.add_video(f"clip{number}", num_frames=4 + number, first_index=10 * number)
    output = project.extract_here()
    assert plan_of(output) == "3 to compute, 5 unchanged"
    assert clip_ids(project) == NAMES


@pytest.mark.parametrize("command", ["dvc repro extract", "python -m stages.extract"])
def test_an_interrupted_run_commits_what_is_complete_and_the_next_one_goes_on(
    fresh: Project, faulty: dict[str, str], command: str
) -> None:
    project = fresh
    under_dvc = command.startswith("dvc")
    faults = dict.fromkeys(NAMES, "slow") | {"clip6": "wait"}
    records = set(project.path.glob(".framecache/**/*.record"))
    with subprocess.Popen(
        command.split(),
        cwd=project.path,
        env={**project.environment, **faulty, "FAULTS": json.dumps(faults)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout
            seen = b""
            while not re.search(rb" [1-5]/8 ", seen):  # clips computed; none is committed
                more = os.read(process.stdout.fileno(), 1024)
                assert more, seen
                seen += more
            assert set(project.path.glob(".framecache/**/*.record")) == records
            if under_dvc:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
            else:
                process.terminate()  # as a batch system does
            rest, _ = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    output = (seen + rest).decode()
    assert "What was committed is kept: run the same command to go on." in output
    assert "Traceback" not in output
    if under_dvc:
        assert re.search("exited with (130|-2)", output)  # -2: dash, under DVC, dies of the Ctrl-C itself
    else:
        assert process.returncode == 143
    output = project.extract_here()
    assert re.fullmatch(r"[3-7] to compute, [1-5] unchanged", plan_of(output))
    assert clip_ids(project) == NAMES


def test_policies_for_bad_clips_decide_what_is_published_and_compute_nothing_again(project: Project) -> None:
    damaged = write_video(project.videos / "clip3.mp4", num_frames=60)
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + bytes(300) + data[len(data) // 2 + 300 :])
    (project.videos / "clip4.mp4").write_bytes(b"")
    project.add_video("clip5", num_frames=2)
    project.set({"extract.damaged": "keep", "extract.min_frames": 3, "extract.max_failed_share": 0.1})
    output = project.dvc("repro", "extract", check=False)
    assert plan_of(output) == "3 source changed, 5 unchanged"
    assert "2 of 8 clips can't be used, more than max_failed_share (0.1) allows" in output
    assert not (project.path / "features").exists()

    project.set({"extract.max_failed_share": 0.25})
    output = project.extract_here()
    assert plan_of(output) == "7 unchanged, 1 quarantined before"
    found = quarantine(project)
    assert [(name, row["policy"]) for name, row in found.items()] == [
        ("clip3", "keep"),
        ("clip4", "drop"),
        ("clip5", "drop"),
    ]
    assert found["clip4"]["num_recovered"] == "0"
    assert found["clip5"]["reason"] == "2 frames, fewer than min_frames (3)"
    num_kept = int(found["clip3"]["num_recovered"])
    assert 0 < num_kept < 60
    with open_view(project.path / "features/layer4") as view:
        assert view.clip_ids() == ["clip0", "clip1", "clip2", "clip3", "clip6", "clip7"]
        assert len(view.read("clip3")) == num_kept
    report = json.loads((project.path / "reports/extract.json").read_text())
    assert (report["clips_with_features"], report["clips_left_out"], report["clips_damaged_kept"]) == (
        6,
        2,
        1,
    )

    project.set({"extract.damaged": "drop", "extract.min_frames": 1})
    output = project.extract_here()
    assert plan_of(output) == "6 unchanged, 2 quarantined before"
    assert clip_ids(project) == ["clip0", "clip1", "clip2", "clip5", "clip6", "clip7"]


def test_a_repro_killed_in_the_middle_keeps_its_finished_shards(
    project: Project, faulty: dict[str, str], tmp_path: Path
) -> None:
    project.set_machine(commit_seconds=0.001, batch_size=4)
    for number, name in enumerate(NAMES):
        project.add_video(name, num_frames=24, first_index=100 * number)
    project.commit()
    journal = project.path / ".framecache"
    before = set(journal.rglob("*.record"))

    def records() -> set[Path]:
        return set(journal.rglob("*.record")) - before

    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["dvc", "repro", "extract"],
            cwd=project.path,
            env={**project.environment, **faulty, "FAULTS": json.dumps({"clip6": "wait"})},  # never done
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 240
    try:
        while len(stored_keys(map(read_record, records()))) < 3:  # of 7
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = [record.with_suffix(".shard").relative_to(project.path) for record in records()]
    assert not (project.path / "features").exists()

    for number, again in enumerate((("repro", "extract"), ("exp", "run", "extract"))):
        copy = project.copy(tmp_path / str(number))
        kept = {(copy.path / shard).stat().st_ino for shard in finished}
        output = copy.dvc(*again)
        unchanged = int(re.search(r"(\d+) unchanged", plan_of(output))[1])  # type: ignore[index]
        assert 0 < unchanged < 8
        assert kept <= {path.stat().st_ino for path in copy.path.glob(".framecache/**/*.shard")}
        with open_view(copy.path / "features/layer4") as view:
            assert view.clip_ids() == NAMES


def test_a_batch_for_which_there_is_no_memory_is_one_message_with_the_way_out(fresh: Project) -> None:
    fresh.set_machine(batch_size=10**12)
    output = fresh.extract_here(check=False)
    assert "error: Out of memory: " in output
    assert "A smaller batch_size takes less (now 1000000000000)." in output
    assert "Lower batch_size in machine.yaml, then run again to go on." in output
    assert "Traceback" not in output
