"""What a model answered about clips, as a page shows it: which clips, in which order, and their answers."""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.html import number

NUM_EXTREME = 24  # so many clips with the highest loss are shown first, and so many with the lowest last
_NUM_RANKED = 3  # classes that are named with their probabilities

Cell = tuple[str, str]  # the right class, and the model's


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question about a clip."""

    about: str  # a question, or `value 2`; "" where a clip has one answer
    truth: tuple[str, ...]  # all right answers
    answer: str
    is_right: bool | None  # None: numbers are more or less wrong
    ranked: tuple[tuple[str, float], ...] = ()  # the likeliest classes and their probabilities


@dataclass(frozen=True)
class Stretch:
    """Frames in a row with the same class, from start_seconds to end_seconds."""

    start_seconds: float
    end_seconds: float
    label: str


@dataclass(frozen=True)
class Timeline:
    """The classes of a clip's frames, in time."""

    truth: tuple[Stretch, ...]
    answer: tuple[Stretch, ...]


@dataclass(frozen=True)
class ClipAnswers:
    """A clip on the page."""

    clip_id: str
    loss: float  # the mean of its rows' losses
    answers: tuple[Answer, ...]
    num_right: int
    num_rows: int  # answers or labelled frames
    cells: frozenset[Cell]  # of its rows, where the model chooses among classes
    timeline: Timeline | None = None  # of a task with an answer a frame

    @property
    def is_right(self) -> bool | None:
        """Whether all its answers are right; None for numbers."""
        if any(answer.is_right is None for answer in self.answers):
            return None
        return self.num_right == self.num_rows


@dataclass(frozen=True)
class ClassRow:
    """How a model did on one class."""

    name: str
    num_rows: int  # clips, frames or questions
    precision: float  # 0 where the class was never answered
    recall: float
    f1: float


class Answers:
    """The rows of one model in the table that `pipeline.learn.evaluation.prediction_table` describes."""

    def __init__(self, predictions: pa.Table, *, model: str = "recurrent") -> None:
        metadata = predictions.schema.metadata or {}
        self.task = metadata.get(b"task", b"").decode()
        self.table = predictions.filter(pc.equal(predictions["model"], model))
        several = pa.types.is_list(predictions.schema.field("answer").type)  # labels at once
        for name in ("truth", "answer") if several else ():
            place = self.table.column_names.index(name)
            self.table = self.table.set_column(place, name, pc.binary_join(self.table[name], ", "))
        self.chooses = "probabilities" in predictions.column_names and not several  # among classes
        self.has_values = "value" in predictions.column_names
        self.has_frames = "frame_seconds" in predictions.column_names
        self.known: list[str] = json.loads(metadata.get(b"classes", b"[]"))

    @functools.cached_property
    def losses(self) -> dict[str, float]:
        """The mean loss of each clip, in the table's order; 0 where no row has one."""
        table = self.table
        weights = pc.if_else(pc.is_null(table["loss"]), 0.0, table["loss_weight"])
        sums = pa.table(
            {
                "clip_id": table["clip_id"],
                "loss": pc.multiply(pc.fill_null(table["loss"], 0.0), weights),
                "weight": weights,
            }
        ).group_by("clip_id", use_threads=False)
        found = sums.aggregate([("loss", "sum"), ("weight", "sum")]).to_pydict()
        rows = zip(found["clip_id"], found["loss_sum"], found["weight_sum"], strict=True)
        return {clip: loss / weight if weight else 0.0 for clip, loss, weight in rows}

    def confusion(self) -> dict[Cell, int]:
        """The number of rows of each pair of classes."""
        found = self.table.group_by(["truth", "answer"], use_threads=False).aggregate([([], "count_all")])
        rows = zip(*(found[name].to_pylist() for name in ("truth", "answer", "count_all")), strict=True)
        return {(truth, answer): count for truth, answer, count in rows}

    def classes(self) -> list[ClassRow]:
        """A row a class: those among which the model chooses, and others that are right."""
        cells = self.confusion()
        actual, predicted, hits = Counter[str](), Counter[str](), Counter[str]()
        for (truth, answer), count in cells.items():
            actual[truth] += count
            predicted[answer] += count
            hits[truth] += count * (truth == answer)
        return [
            ClassRow(
                name,
                actual[name],
                hits[name] / max(predicted[name], 1),
                hits[name] / max(actual[name], 1),
                2 * hits[name] / max(actual[name] + predicted[name], 1),
            )
            for name in dict.fromkeys([*self.known, *sorted(actual)])
        ]

    def choose(self, *, at_most: int) -> dict[str, str]:
        """The clips to show, the highest loss first, each with its place: worst, between or best.

        Where not all have room, those between are some of each cell.
        """
        by_loss = sorted(self.losses, key=lambda clip: -self.losses[clip])
        num_extreme = min(NUM_EXTREME, at_most // 2)
        worst, rest = by_loss[:num_extreme], by_loss[num_extreme:]
        between, best = rest[: len(rest) - num_extreme], rest[-num_extreme:]
        room = at_most - len(worst) - len(best)
        chosen = dict.fromkeys(worst, "worst") | dict.fromkeys(best, "best")
        chosen |= dict.fromkeys(self._of_each_cell(between, room), "between")
        return {clip: chosen[clip] for clip in by_loss if clip in chosen}

    def of(self, clips: Iterable[str]) -> dict[str, ClipAnswers]:
        """The answers about these clips, by clip id, in the same order."""
        rows: dict[str, list[dict[str, Any]]] = {clip: [] for clip in clips}
        for row in self.table.filter(pc.is_in(self.table["clip_id"], pa.array(list(rows)))).to_pylist():
            rows[row["clip_id"]].append(row)
        return {clip: self._clip(clip, found) for clip, found in rows.items()}

    def _of_each_cell(self, clips: Sequence[str], num_clips: int) -> list[str]:
        """So many clips: the first of each cell, the second of each, and so on."""
        if len(clips) <= num_clips:
            return list(clips)
        cell_of: Mapping[str, Any] = {}
        if self.chooses:
            order = pc.sort_indices(pc.fill_null(self.table["loss"], 0.0))
            rows = self.table.select(["clip_id", "truth", "answer"]).take(order).to_pydict()
            cell_of = dict(zip(rows["clip_id"], zip(rows["truth"], rows["answer"], strict=True), strict=True))
        seen = Counter[Any]()
        ranks = {}
        for clip in clips:
            cell = cell_of.get(clip)
            ranks[clip] = seen[cell]
            seen[cell] += 1
        return sorted(clips, key=lambda clip: ranks[clip])[:num_clips]

    def _clip(self, clip_id: str, rows: list[dict[str, Any]]) -> ClipAnswers:
        timeline = None
        if self.has_frames:
            rows = sorted(rows, key=lambda row: row["frame_seconds"])
            timeline = Timeline(*(_stretches(rows, name) for name in ("truth", "answer")))
        answers = tuple(map(self._answer, rows)) if not self.has_frames else ()
        right = [self._is_right(row) for row in rows]
        cells = frozenset((row["truth"], row["answer"]) for row in rows) if self.chooses else frozenset()
        return ClipAnswers(
            clip_id,
            self.losses.get(clip_id, math.nan),
            answers,
            sum(map(bool, right)),
            len(rows),
            cells,
            timeline,
        )

    def _answer(self, row: dict[str, Any]) -> Answer:
        if self.has_values:
            about = f"value {row['value']}" if self.num_values > 1 else ""
            return Answer(about, (number(row["truth"]),), number(row["answer"]), None)
        truth = row["truth"] if isinstance(row["truth"], list) else [row["truth"]]
        ranked: tuple[tuple[str, float], ...] = ()
        if self.chooses:
            probabilities = np.array(row["probabilities"])
            order = np.argsort(-probabilities, kind="stable")[:_NUM_RANKED]
            ranked = tuple((self.known[i], float(probabilities[i])) for i in order)
        return Answer(row.get("question", ""), tuple(truth), row["answer"], self._is_right(row), ranked)

    @property
    def num_values(self) -> int:
        """How many numbers a clip has, in regression."""
        return int(pc.max(self.table["value"]).as_py() or 1) if self.has_values else 0

    def _is_right(self, row: dict[str, Any]) -> bool | None:
        if self.has_values:
            return None
        truth = row["truth"]
        if isinstance(truth, list):
            from pipeline.learn.vocabulary import measured_words  # imports torch

            return measured_words(row["answer"]) in map(measured_words, truth)
        return bool(row["answer"] == truth)


def _stretches(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Stretch, ...]:
    """Runs of frames with the same class; a frame is shown until the next, as far as frames are dense."""
    times = np.array([row["frame_seconds"] for row in rows])
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    ends = times + np.append(np.minimum(gaps, 1.5 * usual), usual)
    found: list[Stretch] = []
    for row, start, end in zip(rows, times.tolist(), ends.tolist(), strict=True):
        if found and found[-1].label == row[name] and found[-1].end_seconds >= start - 1e-9:
            start = found.pop().start_seconds
        found.append(Stretch(start, end, row[name]))
    return tuple(found)
