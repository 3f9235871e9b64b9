"""Work in child processes: a crash costs one item."""

import os
import subprocess
import sys

import pytest

from pipeline.system.children import Crash, in_child
from tests.support.crashes import double


def test_items_are_done_in_a_child_in_order_and_those_that_end_it_are_named():
    items = [*range(8), "SIGSEGV", *range(8, 12), "SIGKILL"]
    assert list(in_child(double, items, num_threads=2)) == [
        *range(0, 16, 2),
        Crash("by SIGSEGV"),
        *range(16, 24, 2),
        Crash("by SIGKILL"),
    ]


def test_an_error_in_a_child_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="A process ended with exit code 1"):
        list(in_child(double, [1, None], num_threads=1))
    assert "TypeError" in capfd.readouterr().err


def test_a_terminals_interrupt_does_not_reach_a_child():
    assert list(in_child(os.getsid, [0], num_threads=1)) != [os.getsid(0)]


def test_a_script_is_not_run_again_by_its_children(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.system.children import in_child\nprint(list(in_child(abs, [-1], num_threads=1)))"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, check=True)
    assert done.stdout == b"[1]\n"


def test_without_items_no_process_starts():
    assert list(in_child(double, [], num_threads=1)) == []
