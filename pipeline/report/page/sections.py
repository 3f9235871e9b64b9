"""The sections of a page: what each of them shows. A template of the same name draws it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import starmap
from typing import Any

from pipeline.contract import FeatureContract
from pipeline.report.page.answers import Cell
from pipeline.report.page.charts import axis_of, line_chart, scatter_chart
from pipeline.report.page.context import Context
from pipeline.report.page.gallery import Shown
from pipeline.report.page.groups import group_token, groups_of_clips
from pipeline.report.runs import Run, differing_settings

_MAX_CLASSES = 30  # of a confusion matrix
_MAX_ROWS = 400  # of a table
_MAX_LABELS = 20  # of a clip that has several at once
_MODELS = {
    "recurrent": "the trained model",
    "shuffled": "the same model, which reads the frames of each clip in a random order",
    "baseline": "a model that can't see order",
}
_NO_CLIP = "a model that sees the question only, not the clip"


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str  # of its template and its anchor
    title: str
    build: Callable[[Context], dict[str, Any] | None]  # values for the template; None: leave it out


@dataclass(frozen=True)
class _Row:
    """A model in the section of results."""

    label: str
    words: str  # what it is
    model: str
    value: float | None  # of the headline metric; None: undefined
    interval: Sequence[float] | None
    metrics: Mapping[str, tuple[float | None, Sequence[float] | None]] = field(default_factory=dict)


def _result(context: Context) -> dict[str, Any]:
    run, comparison = context.run, context.extras.comparison
    metric = run.facts.headline
    if comparison:
        rows = [
            _Row(each.name, "", "recurrent", estimate.value, estimate.interval)
            for each, estimate in zip(comparison.runs, comparison.estimates, strict=True)
        ]
        sentences = [comparison.claim(), comparison.mcnemar(), comparison.warning(), comparison.left_out()]
        num_clips, num_units = comparison.num_clips, len(comparison.ranking.units)
    else:
        rows = list(_model_rows(run, metric))
        sentences = run.summary.strip().rpartition("\n\n")[2].splitlines()
        num_clips = run.metrics["recurrent"]["num_clips"]
        num_units = run.metrics["recurrent"]["num_units"]
    ends = [end for row in rows for end in (row.value, *(row.interval or ()))]
    return {
        "sentences": filter(None, sentences),
        "metric": metric.replace("_", " "),
        "split": run.split,
        "num_clips": num_clips,
        "num_groups": num_units if num_units < num_clips else None,
        "rows": rows,
        "scale": axis_of((end for end in ends if end is not None), start=0, end=100),
        "names": list(rows[0].metrics),
        "less_is_better": run.facts.monitors[metric] < 0,
        "differences": comparison.rows() if comparison else [],
    }


def _model_rows(run: Run, metric: str) -> Iterator[_Row]:
    """The model and its controls, named as in the evaluation's table."""
    labels = [re.split(r"\s{2,}", line)[0] for line in run.summary.splitlines()[1:4]]
    for (model, scores), label in zip(run.metrics.items(), labels, strict=True):
        blind = model == "baseline" and run.facts.takes_questions
        yield _Row(
            label,
            _NO_CLIP if blind else _MODELS[model],
            model,
            scores[metric],
            scores["intervals"][metric],
            {name: (scores[name], ends) for name, ends in scores["intervals"].items()},
        )


def _curves(context: Context) -> dict[str, Any] | None:
    runs, single = context.runs, len(context.runs) == 1
    names = dict.fromkeys(name for run in runs for name in run.curves.get("recurrent", {}))
    if not names:
        return None
    names = dict.fromkeys([name for name in (context.run.facts.headline, "loss") if name in names]) | names
    charts = []
    for name in names:
        lines = []
        for number, run in enumerate(runs, start=1):
            curve = run.curves.get("recurrent", {}).get(name)  # a checkpoint alone has none
            if curve is None:
                continue
            prefix = "" if single else f"{run.name}, "
            lines.append((f"{prefix}train", curve.train, number, True))
            lines.append((f"{prefix}val", curve.val, number, False))
        baseline = context.run.curves.get("baseline", {}).get(name)
        if single and baseline:
            lines.append(("baseline, val", baseline.val, 0, False))
        best = [run.training["recurrent"].get("best_epoch") for run in runs if single]
        charts.append(
            line_chart(
                name.replace("_", " "), lines, best_epochs=[epoch for epoch in best if epoch is not None]
            )
        )
    has_baseline = single and any(line.colour == 0 for chart in charts for line in chart.lines)
    return {"charts": charts, "runs": runs, "has_baseline": has_baseline, "training": context.run.training}


def _confusion(context: Context) -> dict[str, Any] | None:
    answers = context.answers[0]
    if len(context.runs) > 1 or not answers.chooses:
        return None
    cells = answers.confusion()
    totals, mistakes = Counter[str](), Counter[str]()
    for (truth, answer), count in cells.items():
        totals[truth] += count
        if truth != answer:
            mistakes[truth] += count
            mistakes[answer] += count
    names = list(answers.names)
    most = {name for name, _ in mistakes.most_common(_MAX_CLASSES)}
    classes = names if len(names) <= _MAX_CLASSES else [name for name in names if name in most]
    return {
        "classes": classes,
        "num_classes": len(names),
        "answers": answers,
        "cells": cells,
        "totals": totals,
        "shown": _shown(context),
        "noun": _noun(context),
    }


def _classes(context: Context) -> dict[str, Any] | None:
    answers = context.answers[0]
    if len(context.runs) > 1 or not (answers.chooses or answers.has_labels):
        return None
    rows = answers.classes()
    return {
        "rows": rows[:_MAX_ROWS],
        "num_rows": len(rows),
        "noun": _noun(context),
        "answers": answers,
        "shown": _shown(context),
    }


def _shown(context: Context) -> dict[Cell, list[int]]:
    """The numbers of the clips on the page that have each cell."""
    shown: dict[Cell, list[int]] = {}
    for clip in context.gallery.clips:
        for cell in clip.first.cells:
            shown.setdefault(cell, []).append(clip.number)
    return shown


def _noun(context: Context) -> str:
    facts = context.run.facts
    return "frames" if facts.per_frame else "questions" if facts.takes_questions else "clips"


def _values(context: Context) -> dict[str, Any] | None:
    if not context.answers[0].has_values:
        return None
    charts = []
    for run, answers in zip(context.runs, context.answers, strict=True):
        prefix = f"{run.name}: " if len(context.runs) > 1 else ""
        columns = {name: answers.table[name].to_pylist() for name in ("value", "clip_id", "truth", "answer")}
        for value in range(1, answers.num_values + 1):
            rows = [row[1:] for row in zip(*columns.values(), strict=True) if row[0] == value]
            charts.append(scatter_chart(f"{prefix}value {value}", rows))
    return {"charts": charts, "numbers": context.gallery.numbers}


def _clips(context: Context) -> dict[str, Any]:
    answers = context.answers[0]
    names = (
        dict.fromkeys(label for run in context.answers for label in run.known) if answers.has_frames else {}
    )
    return {
        "gallery": context.gallery,
        "single": len(context.runs) == 1,
        "answers": answers,
        "tokens": partial(_tokens, context),
        "max_labels": _MAX_LABELS,
        "colours": {name: 1 + number % 7 for number, name in enumerate(names)},
        "num_shown": len(list(context.gallery.clips)),
        "facts": context.run.facts,
        "root_is_known": context.extras.root is not None,
        "has_videos": any(clip.picture.video for clip in context.gallery.clips),
    }


def _tokens(context: Context, clip: Shown) -> list[str]:
    """What the links of the page find a clip by."""
    cells = clip.first.cells if len(context.runs) == 1 else ()
    groups = starmap(group_token, clip.first.meta.items())
    return [*sorted(map(context.answers[0].token, cells)), *groups]


def _extraction(context: Context) -> dict[str, Any] | None:
    report = context.run.extraction
    if not report or len(context.runs) > 1:
        return None
    lanes = {name: lane for name, lane in report.get("lanes", {}).items() if lane["busy"] or lane["starved"]}
    rows = context.extras.quarantine
    return {"report": report, "lanes": lanes, "quarantine": rows[:_MAX_ROWS], "num_quarantined": len(rows)}


def _contract(context: Context) -> dict[str, Any]:
    contracts = context.run.contracts
    rows = [{**_leaves(each.model_dump(mode="json")), "digest": each.digest()} for each in contracts]
    differences = {run.name: _differences(contracts, run.contracts) for run in context.runs[1:]}
    return {
        "fields": {key: [row.get(key) for row in rows] for row in rows for key in row},
        "differences": {name: fields for name, fields in differences.items() if fields},
    }


def _differences(ours: Sequence[FeatureContract], theirs: Sequence[FeatureContract]) -> list[str]:
    """The fields in which the contracts of two runs differ, stream by stream."""
    if len(ours) != len(theirs):
        return ["the number of streams"]
    pairs = zip(ours, theirs, strict=True)
    return list(dict.fromkeys(field for one, other in pairs for field in one.differences(other)))


def _settings(context: Context) -> dict[str, Any]:
    return {
        "runs": context.runs,
        "keys": list(dict.fromkeys(key for run in context.runs for key in run.settings)),
        "differing": differing_settings(context.runs),
        "changes": context.extras.changes,
        "parent": context.extras.parent,
    }


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


SECTIONS = (
    Section("result", "Result", _result),
    Section("settings", "Settings", _settings),
    Section("curves", "Learning curves", _curves),
    Section("confusion", "Confusion", _confusion),
    Section("classes", "Classes", _classes),
    Section("groups", "Groups of clips", groups_of_clips),
    Section("values", "Values", _values),
    Section("clips", "Clips", _clips),
    Section("extraction", "Extraction", _extraction),
    Section("contract", "Feature contract", _contract),
)
