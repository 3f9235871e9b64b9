"""Training: one loop, for one model or many at once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

from pipeline.learn.member import Member, Metrics
from pipeline.learn.models.steps import share_steps
from pipeline.learn.streaming import Batch, Loader


def fit_many(
    members: Sequence[Member],
    *,
    until: int | None = None,
    num_threads: int = 1,
    on_batch: Callable[[Member], None] = lambda _: None,
    on_epoch: Callable[[Member, Metrics], None] = lambda *_: None,
) -> None:
    """Train members until each is done, or has `until` epochs: to the same numbers as each alone.

    Members that share a loader share its batches, and if their models begin alike, the steps of each batch.
    On a CPU, `num_threads` members work at once. The members are on one device.

    A member whose loss or answers are not finite fails alone: see `Member.failure`. `on_batch` is called
    after each batch of a member, and `on_epoch` with each epoch's metrics, including those before a resume.

    Raises NonFiniteFeaturesError, with the clips, for features that are infinite or NaN.
    """
    for member in members:
        for metrics in member.history:
            on_epoch(member, metrics)
    share_steps(member.model for member in members)
    on_cpu = all(member.device.type == "cpu" for member in members)
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="member") if on_cpu else _InTurn()
    try:
        while left := [m for m in members if not m.is_done and (until is None or m.epoch < until)]:
            epoch = min(member.epoch for member in left)
            now = [member for member in left if member.epoch == epoch]
            for member in now:
                member.begin_epoch()
            for member in _hand_out(now, lambda m: (m.train, m.step), epoch=epoch, pool=pool):
                on_batch(member)
            for member in now:
                member.begin_answers()
            for _ in _hand_out(now, lambda m: (m.val, m.answer), epoch=0, pool=pool):
                pass
            for member, _ in zip(now, pool.map(lambda m: m.attempt(m.end_epoch), now), strict=True):
                if member.failure is None:
                    on_epoch(member, member.history[-1])
    finally:
        pool.shutdown(cancel_futures=True)


def _hand_out(
    members: Sequence[Member],
    part: Callable[[Member], tuple[Loader, Callable[[Batch], None]]],
    *,
    epoch: int,
    pool: Executor,
) -> Iterator[Member]:
    """Hand the batches of a loader's epoch to its members; a member each time that it has done one.

    `part` is of a member the loader, and what it does with a batch. While members work on a batch, the next
    one is prepared. So a member's work is done in the order of the batches.
    """
    groups: dict[int, list[Member]] = defaultdict(list)
    for member in members:
        groups[id(part(member)[0])].append(member)
    shared = [share_steps(member.model for member in group) for group in groups.values()]
    epochs = [part(group[0])[0].epoch(epoch) for group in groups.values()]
    running: list[tuple[Member, Future[None]]] = []
    with ExitStack() as stack:
        for batches in zip_longest(*epochs):
            ready = []
            with ExitStack() as prepared:
                for batch, steps, group in zip(batches, shared, groups.values(), strict=True):
                    if batch is None:  # this loader has fewer
                        continue
                    batch = replace(batch, maps=batch.maps.to(group[0].device))
                    for its_steps in steps:
                        prepared.enter_context(its_steps.keeping(batch.maps, batch.lengths))
                    ready.append((batch, group))
                yield from _finished(running)
                stack.close()
                stack.push(prepared.pop_all())
            running = [
                (member, pool.submit(member.attempt, partial(part(member)[1], batch)))
                for batch, group in ready
                for member in group
            ]
        yield from _finished(running)


def _finished(running: Iterable[tuple[Member, Future[None]]]) -> Iterator[Member]:
    for member, future in running:
        future.result()
        if member.failure is None:
            yield member


class _InTurn(Executor):
    """Does at once, in the caller's thread, what it is asked to do: on a GPU, threads would gain nothing."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **options))
        return done
