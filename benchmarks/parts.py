"""Runs a stage in this process, then prints how many seconds each part of it took, as a line of JSON.

In a project: python -m benchmarks.parts train recurrent
"""

import functools
import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

SPENT: dict[str, float] = defaultdict(float)

# What each part does: a module, and a function or method there. No part is inside of another one.
PARTS = {
    "settings and digests": [
        ("stages.inputs", "Inputs.__init__"),
        ("stages.inputs", "Inputs.check"),
        ("stages.settings", "check_settings"),
        ("pipeline.learn.run", "input_digests"),
        ("pipeline.learn.run", "loaded_code"),
    ],
    "opening, features into memory": [("pipeline.learn.shared", "Shared.__init__")],
    "statistics": [("pipeline.learn.shared", "channel_statistics")],
    "metrics and state of each epoch": [("pipeline.learn.member", "Member.end_epoch")],
    "model, logs and checkpoint written": [
        ("stages.train", "show_epoch"),
        ("stages.train", "write_results"),
        ("pipeline.learn.run", "save_checkpoint"),
    ],
    "evaluation: answers": [("pipeline.learn.comparison", "_answer_views")],
    "evaluation: metrics and their draws": [("pipeline.learn.comparison", "score_predictions")],
    "evaluation: plots and tables written": [("stages.evaluate", "write_results")],
}


def main() -> None:
    begun = time.perf_counter()
    _, stage, *arguments = sys.argv
    sys.argv = [stage, *arguments]
    module = importlib.import_module(f"stages.{stage}")
    SPENT["imports"] = time.perf_counter() - begun
    for part, places in PARTS.items():
        for name, attribute in places:
            if name in sys.modules:
                _wrap(sys.modules[name], attribute, functools.partial(_timed, part))
    if training := sys.modules.get("pipeline.learn.training"):
        _wrap(training, "_hand_out", _timed_batches)
    module.main()
    seconds = time.perf_counter() - begun
    print(json.dumps({**SPENT, "others": seconds - sum(SPENT.values())}))


def _wrap(owner: Any, attribute: str, wrapper: Callable[[Any], Any]) -> None:
    *parents, name = attribute.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, wrapper(getattr(owner, name)))


def _timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            SPENT[part] += time.perf_counter() - started

    return run


def _timed_batches(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Of the training loop: an epoch's batches of either split."""

    def run(members: Any, part: Any, **options: Any) -> Iterator[Any]:
        started = time.perf_counter()
        yield from function(members, part, **options)
        split = "val" if part(members[0])[0] is members[0].val else "fit"
        SPENT[split] += time.perf_counter() - started

    return run


if __name__ == "__main__":
    main()
