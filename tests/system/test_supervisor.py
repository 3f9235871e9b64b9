"""The supervisor, with real processes that crash, hang, are killed and are interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.project import REPOSITORY

pytestmark = pytest.mark.slow

SUPERVISE = """
import logging, sys
from pipeline.system.supervisor import supervise
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
sys.exit(supervise([sys.executable, "-m", "tests.support.supervised", *sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Run:
    """A supervised stand-in (tests/support/supervised.py) at work on clips {name: what it does}."""

    folder: Path
    process: "subprocess.Popen[str]"

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def lines(self, name: str) -> list[str]:
        return (self.folder / name).read_text().splitlines()


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def run(**clips: str) -> Run:
        for name, action in clips.items():
            (tmp_path / f"{name}.txt").write_text(action)
        process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, str(tmp_path)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return Run(tmp_path, process)

    return run


def test_what_ends_by_itself_is_run_once_and_its_status_is_passed_on(start: Start) -> None:
    run = start(a="", b="")
    assert run.end() == (0, "")
    assert run.lines("done") == ["a", "b"]
    assert run.lines("log") == ["restart 0:"]


def test_the_clip_that_crashes_alone_is_guilty_and_the_others_are_done(start: Start) -> None:
    run = start(a="", b="die SIGSEGV", c="", d="die SIGABRT")
    status, output = run.end()
    assert status == 0
    assert "crashed b: the run crashed (SIGSEGV) on this clip alone\n" in output
    assert "crashed d: the run crashed (SIGABRT) on this clip alone\n" in output
    assert run.lines("done") == ["a", "c"]
    # b, c and d were in flight with b, which crashes again; then c and d are tried, of which d does.
    assert run.lines("log") == ["restart 0:", "restart 1: b c d", "restart 2: c d", "restart 3:"]


def test_a_clip_that_crashes_only_in_company_is_not_guilty(start: Start) -> None:
    run = start(a="", b="die-in-company SIGSEGV", c="")
    status, output = run.end()
    assert status == 0
    assert "crashed b" not in output
    assert run.lines("done") == ["a", "b", "c"]


def test_a_clip_that_hangs_or_exhausts_the_memory_is_set_aside_and_the_status_says_so(start: Start) -> None:
    run = start(a="hang", b="die SIGKILL", c="")
    status, output = run.end()
    assert status == 1
    assert "set aside a: the run made no progress for 3 s on this clip alone\n" in output
    assert "set aside b: the run was killed (SIGKILL, as for want of memory) on this clip alone\n" in output
    assert run.lines("done") == ["c"]


def test_slow_progress_and_waiting_for_room_are_no_stall(start: Start) -> None:
    run = start(a="slow", b="wait")
    assert run.end() == (0, "")


def test_a_run_that_never_gets_a_clip_done_is_given_up(start: Start) -> None:
    run = start(**{f"clip{i}": "die SIGKILL" for i in range(9)})
    status, output = run.end()
    assert status == 1
    assert "for the 6th time without a clip done" in output
    assert len(run.lines("log")) == 6


def test_a_crash_outside_of_any_clip_ends_the_run() -> None:
    code = "import logging, sys; logging.basicConfig(); from pipeline.system.supervisor import supervise\n"
    child = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}sys.exit(supervise([sys.executable, '-c', {child!r}]))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGSEGV
    assert "The run crashed (SIGSEGV), outside of any clip" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_signal_stops_the_child_once(start: Start, number: int, status: int, to_group: bool) -> None:
    run = start(a="", b="ready")
    run.wait_for("ready")
    (os.killpg if to_group else os.kill)(run.process.pid, number)
    assert run.end() == (status, "interrupted\n")
    assert run.lines("log") == ["restart 0:"]


def test_a_second_ctrl_c_kills_a_child_that_does_not_answer(start: Start) -> None:
    run = start(a="deaf")
    run.wait_for("ready")
    run.process.send_signal(signal.SIGINT)
    time.sleep(1.5)  # a Ctrl-C that comes twice at once counts once
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    status, output = run.end()
    assert status == 130
    assert "Stopped at once" in output


def test_the_child_dies_with_its_supervisor(start: Start) -> None:
    run = start(a="ready")
    run.wait_for("ready")
    (child,) = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split()
    run.process.kill()
    run.end()
    with contextlib.suppress(ProcessLookupError):  # a zombie, until init has seen it
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"


def test_the_supervisor_needs_neither_torch_nor_the_library() -> None:
    code = "import sys, stages.extract; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "pyarrow", "zarr", "av", "pydantic", "dvc"}
