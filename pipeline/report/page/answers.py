"""What a model answered about clips, as a page shows it: which clips, in which order, and their answers."""

import functools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.clips import is_meta
from pipeline.report.html import number
from pipeline.report.page.timelines import Timeline, timeline, timeline_of_labels

NUM_EXTREME = 24  # so many clips with the highest loss are shown first, and so many with the lowest last
_NUM_RANKED = 3  # classes that are named with their probabilities

Cell = tuple[str, str]  # the right class, and the model's; of several labels, a label and its Outcome

Outcome = Literal[
    "found", "missed", "wrong"
]  # a label is right and said; is right, not said; is said, not right


@dataclass(frozen=True)
class Label:
    """One of several labels at once."""

    name: str
    probability: float
    outcome: Outcome | None  # None: the label is neither right nor said


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question about a clip."""

    about: str  # a question, or `value 2`; "" where a clip has one answer
    truth: tuple[str, ...]  # all right answers
    answer: str
    is_right: bool | None  # None: numbers are more or less wrong
    ranked: tuple[tuple[str, float], ...] = ()  # the likeliest classes and their probabilities
    labels: tuple[Label, ...] = ()  # of several at once: all that are right or said, and likely ones

    def num_labels(self, outcome: Outcome) -> int:
        """How many of its labels have this outcome."""
        return sum(label.outcome == outcome for label in self.labels)


@dataclass(frozen=True)
class ClipAnswers:
    """A clip on the page."""

    clip_id: str
    loss: float  # the mean of its rows' losses
    answers: tuple[Answer, ...]
    num_right: int
    num_rows: int  # answers or labelled frames
    cells: frozenset[Cell]  # of its rows, where there are classes
    timeline: Timeline | None = None  # of a task with an answer a frame
    meta: Mapping[str, str] = field(default_factory=dict)  # by column meta_<name>; "": an empty cell

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
    # Of several labels at once:
    average_precision: float | None = None  # None: no row has the class
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)  # the number of rows


class Answers:
    """The rows of one model in the table that `pipeline.learn.evaluation.prediction_table` describes."""

    def __init__(self, predictions: pa.Table, *, model: str = "recurrent") -> None:
        metadata = predictions.schema.metadata or {}
        self.task = metadata.get(b"task", b"").decode()
        self.table = predictions.filter(pc.equal(predictions["model"], model))
        self.has_labels = pa.types.is_list(predictions.schema.field("answer").type)  # several at once
        self.chooses = "probabilities" in predictions.column_names and not self.has_labels  # among classes
        self.has_values = "value" in predictions.column_names
        self.has_frames = "frame_seconds" in predictions.column_names
        self.known: list[str] = json.loads(metadata.get(b"classes", b"[]"))

    @functools.cached_property
    def names(self) -> dict[str, int]:
        """The number of each class: of those among which the model chooses, and of others that are right."""
        truths = [] if self.has_labels else pc.unique(self.table["truth"]).to_pylist()
        return {name: number for number, name in enumerate(dict.fromkeys([*self.known, *sorted(truths)]))}

    def token(self, cell: Cell) -> str:
        """What stands for a cell in a page's links."""
        first, second = cell
        return f"{self.names[first]}:{second if self.has_labels else self.names[second]}"

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
        if self.has_labels:
            return list(self._label_rows())
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
            for name in self.names
        ]

    def _label_rows(self) -> Iterator[ClassRow]:
        from pipeline.learn.answers import label_marks  # imports torch, which takes seconds
        from pipeline.learn.metrics import class_scores, mean_average_precision

        truth, said = (label_marks(self.table[name], self.known) for name in ("truth", "answer"))  # (M, K)
        likely = pc.list_flatten(self.table["probabilities"]).to_numpy().reshape(truth.shape)
        scores = class_scores(said, truth)
        for name, score, right, answered, each in zip(
            self.known, scores, truth.T, said.T, likely.T, strict=True
        ):
            precision = mean_average_precision(each[:, None], right[:, None])(np.ones(len(right)))
            outcomes: dict[Outcome, np.ndarray] = {
                "found": right & answered,
                "missed": right & ~answered,
                "wrong": answered & ~right,
            }
            yield ClassRow(
                name,
                score.num_rows,
                score.precision,
                score.recall,
                score.f1,
                None if math.isnan(precision) else precision,
                {outcome: int(rows.sum()) for outcome, rows in outcomes.items()},
            )

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
        shown = None
        if self.has_frames:
            rows = sorted(rows, key=lambda row: row["frame_seconds"])
            shown = timeline_of_labels(rows, self.known) if self.has_labels else timeline(rows)
        answers = tuple(map(self._answer, rows)) if not self.has_frames else ()
        right = [self._is_right(row) for row in rows]
        return ClipAnswers(
            clip_id,
            self.losses.get(clip_id, math.nan),
            answers,
            sum(map(bool, right)),
            len(rows),
            frozenset(cell for row in rows for cell in self._cells(row)),
            shown,
            {name: rows[0][name] or "" for name in self.table.column_names if is_meta(name)},
        )

    def _cells(self, row: dict[str, Any]) -> Iterable[Cell]:
        if self.has_labels:
            names = {*row["truth"], *row["answer"]}
            return ((name, outcome) for name in names if (outcome := _outcome(row, name)))
        return [(row["truth"], row["answer"])] if self.chooses else ()

    def _answer(self, row: dict[str, Any]) -> Answer:
        if self.has_values:
            about = f"value {row['value']}" if self.num_values > 1 else ""
            return Answer(about, (number(row["truth"]),), number(row["answer"]), None)
        if self.has_labels:
            labels, said = tuple(self._labels(row)), ", ".join(row["answer"])
            return Answer("", tuple(row["truth"]), said, self._is_right(row), labels=labels)
        truth = row["truth"] if isinstance(row["truth"], list) else [row["truth"]]
        ranked: tuple[tuple[str, float], ...] = ()
        if self.chooses:
            probabilities = np.array(row["probabilities"])
            order = np.argsort(-probabilities, kind="stable")[:_NUM_RANKED]
            ranked = tuple((self.known[i], float(probabilities[i])) for i in order)
        return Answer(row.get("question", ""), tuple(truth), row["answer"], self._is_right(row), ranked)

    def _labels(self, row: dict[str, Any]) -> Iterator[Label]:
        """All labels that are right or said, and at least three; the likeliest first."""
        ranked = sorted(zip(self.known, row["probabilities"], strict=True), key=lambda each: -each[1])
        for place, (name, probability) in enumerate(ranked):
            outcome = _outcome(row, name)
            if outcome or place < _NUM_RANKED:
                yield Label(name, probability, outcome)

    @property
    def num_values(self) -> int:
        """How many numbers a clip has, in regression."""
        return int(pc.max(self.table["value"]).as_py() or 1) if self.has_values else 0

    def _is_right(self, row: dict[str, Any]) -> bool | None:
        if self.has_values:
            return None
        truth = row["truth"]
        if isinstance(truth, list) and not self.has_labels:
            from pipeline.learn.vocabulary import measured_words  # imports torch

            return measured_words(row["answer"]) in map(measured_words, truth)
        return bool(row["answer"] == truth)


def _outcome(row: Mapping[str, Any], name: str) -> Outcome | None:
    """What became of a label, in a row with several."""
    if name in row["truth"]:
        return "found" if name in row["answer"] else "missed"
    return "wrong" if name in row["answer"] else None
