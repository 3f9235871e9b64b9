"""Progress on a terminal, and in a pipe or a log file."""

import contextlib
import io
import logging
import os
import pty
import re
import sys
import termios
from types import SimpleNamespace

import pytest

from stages import bars, console
from stages.bars import Bars


class Clock:
    """What `stages.bars` and tqdm take for the time, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        fake = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(bars, "time", fake)
        monkeypatch.setattr("tqdm.std.time", fake.time)


def test_a_log_file_gets_a_line_every_ten_seconds_and_no_carriage_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, log = Clock(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)

    def main() -> None:
        with Bars("batch") as shown:
            for number in range(1, 26):
                clock.now += 1
                shown.note("train", f"epoch={number // 10}")
                shown.show("train", number, 25)
                if number == 5:
                    logging.getLogger("stages").info("a log line")
            for number in range(1, 10):
                clock.now += 1
                shown.show("evaluate", number, 9)  # too short for a line

    console.run(main)
    assert re.sub(r"<.*?batch/s", "", log.getvalue()) == (
        "a log line\n"
        "train:  44% 11/25 [00:10, epoch=1]\n"
        "train:  84% 21/25 [00:20, epoch=2]\n"
        "train: 100% 25/25 [00:24, epoch=2]\n"
    )


def test_a_bar_that_an_error_ends_says_in_a_log_file_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with contextlib.suppress(ValueError), Bars("clip") as shown:
        shown.show("extract", 3, 8)
        clock.now = 11.0
        raise ValueError
    assert log.getvalue() == "extract:  38% 3/8 [00:11<00:18,  3.67s/clip]\n"


def test_a_terminal_shows_a_bar_that_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Bars("clip") as shown:
            shown.show("extract", 1, 4)
            console._Handler().emit(logging.makeLogRecord({"msg": "a log line", "levelno": logging.INFO}))
            shown.show("extract", 4, 4)
    seen = b""
    with contextlib.suppress(OSError):  # no more comes
        while True:
            seen += os.read(master, 1 << 16)
    os.close(master)
    assert b"\rextract: 100%|" in seen
    assert b"4/4 [" in seen
    assert b"\ra log line\r\n" in seen
