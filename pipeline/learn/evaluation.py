"""Evaluation: scores of a model's answers, tables of them, and how models compare."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.learn.metrics import Estimate, Units, estimate, json_numbers, resample
from pipeline.learn.tasks import Predictions, Task
from pipeline.manifest import META


@dataclass(frozen=True)
class Score:
    """A model's metrics on some clips."""

    metrics: dict[str, Estimate]
    resampled: dict[str, np.ndarray]  # each metric (R,), of R draws of the units with replacement
    units: Units  # of the clips

    def values(self) -> dict[str, float]:
        """The metrics without their intervals."""
        return {name: metric.value for name, metric in self.metrics.items()}

    def as_json(self) -> dict[str, Any]:
        """The metrics, and below `intervals` the ends of their 95 % intervals; None where undefined."""
        return {
            **json_numbers(self.values()),
            "num_clips": self.units.num_clips,
            "num_units": len(self.units),
            "intervals": {name: e.interval and list(e.interval) for name, e in self.metrics.items()},
        }


def score_predictions(predictions: Predictions, *, task: Task, num_resamples: int, seed: int) -> Score:
    """All of the task's metrics, with bootstrap intervals over clips, or their groups."""
    measure, units = task.measure(predictions), Units.of(clip.group for clip in predictions.clips)
    values = measure(np.ones(units.num_clips))
    resampled = resample(measure, units=units, num_resamples=num_resamples, seed=seed)
    metrics = {
        name: estimate(name, value, resampled[name], num_units=len(units)) for name, value in values.items()
    }
    return Score(metrics, resampled, units)


def prediction_table(
    answers: Mapping[str, Predictions], *, task: Task, own_tasks: Mapping[str, Task] = {}
) -> pa.Table:
    """A row for each answer of several models, given by their names. `own_tasks` are those `tuned` otherwise.

    A row is a clip in classification, multilabel, captioning and frame_words, a labelled frame in
    frame_labels, a frame in frame_multilabel, a value in regression, a question in question_answering.
    Columns:

    - model, clip_id; and, by task, frame_seconds, value (its number in the clip, from 1) or question.
    - truth and answer: the right one, and the model's. Captions have the list of all right ones; of several
      labels, both are lists.
    - probabilities: a list, one a class. Regression and captions have no such column.
    - loss; null for a question whose right answer the model does not know.
    - loss_weight: the metric `loss` is the mean of the rows' losses with these weights.
    - group: that of the clip in the manifest, null where it has none. The column is there if a clip has one.
    - meta_<name>: what the manifest has there for the clip, null where it has nothing. Such a column is there
      if one of the clips has a value.

    The metadata of the schema have the name of the `task` and, as a JSON list, the `classes`.
    """
    tables = {name: own_tasks.get(name, task).tabulate(predictions) for name, predictions in answers.items()}
    rows = pa.concat_tables(tables.values())
    models = pa.chunked_array([pa.repeat(name, len(table)) for name, table in tables.items()])
    clips = {clip.clip_id: clip for predictions in answers.values() for clip in predictions.clips}
    numbers = pc.index_in(rows["clip_id"], pa.array(list(clips)))  # (M,) the clip of each row
    columns = {"group": [clip.group for clip in clips.values()]}
    for name in sorted({name for clip in clips.values() for name in clip.meta}):
        columns[f"{META}{name}"] = [clip.meta.get(name) for clip in clips.values()]
    for name, values in columns.items():
        if any(values):
            rows = rows.append_column(name, pa.array(values, pa.string()).take(numbers))
    return rows.add_column(0, "model", models).replace_schema_metadata(
        {"task": task.name, **(rows.schema.metadata or {})}
    )


def comparison_table(scores: Mapping[str, Score], *, heading: str = "") -> str:
    """Aligned text: a row for each score, a column for each metric, with its interval.

    `heading` stands above the names of the scores.
    """
    names = list(next(iter(scores.values())).metrics)
    cells = [[heading, *(name.replace("_", " ") for name in names), "clips"]]
    for model, score in scores.items():
        metrics = (score.metrics[name] for name in names)
        cells.append([model, *(with_interval(metric) for metric in metrics), score.units.text()])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    )


def with_interval(metric: Estimate, *, sign: str = "") -> str:
    """A metric for people: `0.9650 [0.930, 0.993]`; with sign="+" also the signs of positive numbers."""
    ends = metric.interval
    value = "undefined" if math.isnan(metric.value) else f"{metric.value:{sign}.4f}"
    text = "unknown" if ends is None else ", ".join(f"{end:{sign}.3f}" for end in ends)
    return f"{value} [{text}]"


def order_sentence(ordered: Score, shuffled: Score, *, task: Task, monitor: str) -> str:
    """A sentence for people: whether a model is better by the metric `monitor` if frames are in their order.

    Both scores are of the same draws of the same clips, so that their difference is taken draw by draw. The
    numbers are those of `Task.monitored`. With fewer than 20 clips, or groups, there is no verdict: their
    intervals are too narrow.
    """
    return _verdict(
        "In order against shuffled",
        (ordered, shuffled),
        "the model uses the order of frames",
        asked="the order of frames helps this model",
        task=task,
        monitor=monitor,
    )


def baseline_sentence(model: Score, baseline: Score, *, label: str, task: Task, monitor: str) -> str:
    """A sentence for people, as `order_sentence`: whether a model is better than the baseline `label`."""
    better = "the model is better"
    return _verdict(f"Against {label}", (model, baseline), better, asked=better, task=task, monitor=monitor)


def _verdict(
    heading: str, scores: tuple[Score, Score], claim: str, *, asked: str, task: Task, monitor: str
) -> str:
    """The difference of two scores, and what it shows: `claim`, or nothing about what is `asked`."""
    is_better, difference = _difference(*scores, task=task, monitor=monitor)
    shown = claim if is_better else f"it is not shown that {asked}"
    return f"{heading}: {difference}: {scores[0].units.shortage(f'whether {asked}') or shown}."


def _difference(first: Score, second: Score, *, task: Task, monitor: str) -> tuple[bool, str]:
    """Whether the first is better, and the metric's difference for people."""
    sign = task.facts.monitors[monitor]
    values = [task.monitored(score.values(), monitor) for score in (first, second)]
    draws = task.monitored(first.resampled, monitor) - task.monitored(second.resampled, monitor)
    difference = estimate(
        monitor, values[0] - values[1], draws, num_units=len(first.units), is_difference=True
    )
    unit = " in standard deviations" if values[0] != first.metrics[monitor].value else ""
    is_better = min(sign * difference.low, sign * difference.high) > 0
    return is_better, f"{monitor}{unit} {with_interval(difference, sign='+')}"
