"""Work in child processes: a crash costs one item."""

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


def test_without_items_no_process_starts():
    assert list(in_child(double, [], num_threads=1)) == []
