"""Work by threads: in order, a bounded distance ahead."""

import threading

import pytest

from pipeline.system.parallel import in_threads


def test_results_come_in_order_though_threads_finish_in_any() -> None:
    second_is_done = threading.Event()

    def double(number: int) -> int:
        if number == 0:
            assert second_is_done.wait(10)  # only another thread can end this
        elif number == 1:
            second_is_done.set()
        return 2 * number

    assert list(in_threads(double, range(100), num_threads=2)) == list(range(0, 200, 2))


def test_items_are_taken_a_bounded_distance_ahead() -> None:
    taken = 0

    def items() -> object:
        nonlocal taken
        for number in range(1000):
            taken = number + 1
            yield number

    results = in_threads(str, items(), num_threads=2)  # type: ignore[arg-type]
    assert next(results) == "0"
    assert taken <= 10
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_at_its_items_turn_and_ends_the_work() -> None:
    done = []

    def invert(number: int) -> float:
        done.append(number)
        return 1 / (number - 3)

    results = in_threads(invert, range(1000), num_threads=2)
    assert [next(results) for _ in range(3)] == [-1 / 3, -1 / 2, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(done) < 30
