"""Comparing runs: which one is better, on the clips that all were asked the same about."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError, UnequalClipsError, count_of, few
from pipeline.learn.answers import asked, tally
from pipeline.learn.folds import FoldUnits, over_folds
from pipeline.learn.metrics import Units, estimate
from pipeline.learn.subgroups import MAX_VALUES
from pipeline.learn.sweeps import Candidate, rank
from pipeline.manifest.clips import is_meta
from pipeline.report.run_comparison import RunComparison
from pipeline.report.runs import Run, differing_settings

# A run's answers: by fold, a table a seed. "" is the name of the split of a run without folds.
_Answers = Mapping[str, Sequence[pa.Table]]


def compare_runs(
    runs: Sequence[Run], *, common: bool = False, by: str = "", num_resamples: int = 1000, seed: int = 0
) -> RunComparison:
    """Compare runs on the clips that they were asked about; see `rank`.

    Runs over folds are compared fold by fold: each clip's answer is that of the fold in which it is a test
    clip, and the metric is the mean over folds.

    Args:
        runs: two or more, of one task and split. Their order changes nothing: equal ones are sorted by name.
        by: a column meta_<name>: compare also on the clips with each of its values; "": none.
        common: leave out the clips that not all runs were asked the same about.
        num_resamples: draws of the clips.
        seed: of the draws.

    Raises:
        RunError: for less than two runs, the same run twice, one without answers, other tasks, splits or
            folds, or a column that no run has, or that has too many values.
        UnequalClipsError: for runs that were asked about other clips, or have other right answers for them.
    """
    if len(runs) < 2:
        raise RunError("Comparing takes at least two runs.")
    for first, second in combinations(runs, 2):
        _check_pair(first, second)
    answers = {run.name: _answers(run) for run in runs}
    questions = {name: _asked(folds) for name, folds in answers.items()}
    difference = next(_clip_differences(questions), "")
    if difference and not common:
        raise UnequalClipsError(difference)
    ours, *theirs = questions.values()
    clips = [clip for clip, rows in ours.items() if all(other.get(clip) == rows for other in theirs)]
    if not clips:
        raise RunError(f"There is no clip that all runs were asked the same about. {difference}")
    chosen = {name: _of(folds, clips) for name, folds in answers.items()}
    comparison = replace(
        _compare(runs, chosen, num_resamples=num_resamples, seed=seed),
        num_left_out=len({clip for each in questions.values() for clip in each}) - len(clips),
    )
    if not by:
        return comparison
    tables = [tables[0] for folds in chosen.values() for tables in folds.values()]
    groups = {
        value: _compare(
            runs,
            {name: _of(folds, members) for name, folds in chosen.items()},
            num_resamples=num_resamples,
            seed=seed,
        )
        for value, members in _clips_by_value(by, tables).items()
    }
    return replace(comparison, column=by, by=groups)


def _compare(
    runs: Sequence[Run], answers: Mapping[str, _Answers], *, num_resamples: int, seed: int
) -> RunComparison:
    """Compare runs by their answers about the same clips."""
    folds = {name: [list(map(tally, tables)) for tables in of.values()] for name, of in answers.items()}
    groups, facts = _groups(answers), runs[0].facts
    clips = [tallies[0].clip_ids for tallies in folds[runs[0].name]]
    units: Units | FoldUnits
    if runs[0].folds:
        units = FoldUnits.of(clips, groups=groups)
        tallies = {name: over_folds(of) for name, of in folds.items()}
    else:
        units = Units.of(map(groups.get, clips[0]))
        tallies = {name: of[0][0] for name, of in folds.items()}
    ranking = rank(
        [
            Candidate(name, name, each.metric, math.inf if math.isnan(each.loss) else each.loss)
            for name, each in sorted(tallies.items(), reverse=True)  # of equal ones, the last is the best
        ],
        units=units,
        sign=facts.monitors[facts.headline],
        num_resamples=num_resamples,
        seed=seed,
    )
    by_name, order = {run.name: run for run in runs}, [each.members[0] for each in ranking.settings]
    draws: list[Any] = list(units.draws(num_resamples=num_resamples, seed=seed))
    return RunComparison(
        runs=tuple(by_name[name] for name in order),
        estimates=tuple(
            estimate(
                facts.headline,
                ranking.values[name],
                np.array([tallies[name].metric(draw) for draw in draws]),
                num_units=len(ranking.units),
            )
            for name in order
        ),
        tallies=tuple(tallies[name] for name in order),
        ranking=ranking,
        folds={
            fold: tuple(tallies[name].metric([part]) for name in order)
            for fold, part in zip(answers[runs[0].name], units.whole, strict=True)
        }
        if isinstance(units, FoldUnits)
        else {},
    )


def _answers(run: Run) -> _Answers:
    """The answers of the model, without those of its controls; over folds, a clip is named with its fold."""
    is_model = pc.field("model") == "recurrent"
    if not run.folds:
        return {"": [run.predictions.filter(is_model)]}
    return {
        fold: [_with_fold(table.filter(is_model), fold) for table in tables]
        for fold, tables in sorted(run.folds.items(), key=lambda item: (len(item[0]), item[0]))
    }


def _with_fold(table: pa.Table, fold: str) -> pa.Table:
    """The table with names of clips such as `a (fold 1)`; a clip without a group is one, in all folds."""
    clips = table["clip_id"]
    groups = pc.coalesce(table["group"], clips) if "group" in table.column_names else clips
    names = pc.binary_join_element_wise(clips, f"(fold {fold})", " ")
    rest = table.drop_columns([name for name in ("clip_id", "group") if name in table.column_names])
    return rest.append_column("clip_id", names).append_column("group", groups)


def _asked(folds: _Answers) -> dict[str, Any]:
    """What was asked about each clip of all folds, and what is right."""
    return {clip: rows for tables in folds.values() for clip, rows in asked(tables[0]).items()}


def _groups(answers: Mapping[str, _Answers]) -> dict[str, str | None]:
    """The group of each clip that has one; where runs say different ones, that of the first name counts."""
    found: dict[str, str | None] = {}
    for _, folds in sorted(answers.items(), reverse=True):
        for tables in folds.values():
            if "group" in tables[0].column_names:
                pairs = zip(*(tables[0][name].to_pylist() for name in ("clip_id", "group")), strict=True)
                found |= {clip: group for clip, group in pairs if group}
    return found


def _of(folds: _Answers, clips: Sequence[str]) -> _Answers:
    """The answers about these clips, in the folds that have some of them."""
    among = pa.array(clips)
    found = {
        fold: [table.filter(pc.is_in(table["clip_id"], among)) for table in tables]
        for fold, tables in folds.items()
    }
    return {fold: tables for fold, tables in found.items() if len(tables[0])}


def _clips_by_value(column: str, tables: Iterable[pa.Table]) -> dict[str, list[str]]:
    """The clips with each value of a column, by the first table that has it; "" stands for an empty cell."""
    columns = {
        name: table for table in reversed(list(tables)) for name in table.column_names if is_meta(name)
    }
    if column not in columns:
        names = f"Columns: {', '.join(sorted(columns))}." if columns else "They have no columns meta_<name>."
        raise RunError(f"The answers of no run have the column {column!r}. {names}")
    rows = columns[column].select(["clip_id", column]).to_pydict()
    values = dict(zip(rows["clip_id"], rows[column], strict=True))
    groups: dict[str, list[str]] = {}
    for clip, value in sorted(values.items(), key=lambda item: item[1] or ""):
        groups.setdefault(value or "", []).append(clip)
    if len(groups) > MAX_VALUES:
        raise RunError(f"{column} has {len(groups)} values: clips are compared by at most {MAX_VALUES}.")
    return groups


def _check_pair(first: Run, second: Run) -> None:
    """Raise RunError for two runs that can't be compared, whatever their clips are."""
    for run in (first, second):
        if run.predictions is None and not run.folds:
            raise RunError(f"{run.name} has no answers to compare.")
    if first.name == second.name:
        raise RunError(f"{first.name} is named twice.")
    if first.task != second.task:
        raise RunError(
            f"The task of {first.name} is {first.task}, that of {second.name} is {second.task}: they can't be"
            " compared."
        )
    if first.split != second.split:
        raise RunError(
            f"{first.name} was evaluated on the {first.split} clips, {second.name} on the {second.split}"
            " clips."
        )
    if first.folds.keys() != second.folds.keys():
        ours, theirs = (", ".join(run.folds) or "none" for run in (first, second))
        raise RunError(f"The folds of {first.name} are {ours}; those of {second.name} are {theirs}.")
    if not differing_settings([first, second]) and _answers(first) == _answers(second):
        raise RunError(
            f"{first.name} and {second.name} are the same run: their settings and answers are equal."
        )


def _clip_differences(questions: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each run that was not asked the same about the same clips as the first one."""
    (first, ours), *others = questions.items()
    for second, theirs in others:
        if missing := ours.keys() ^ theirs.keys():
            yield (
                f"{first} was asked about {count_of(len(ours), 'clips')}, {second} about"
                f" {len(theirs)}; only one of them about {few(sorted(missing))}."
            )
        elif changed := [clip for clip, rows in ours.items() if theirs[clip] != rows]:
            yield (
                f"{first} and {second} were asked about other frames, or have other right answers, for"
                f" {count_of(len(changed), 'clips')}: {few(sorted(changed))}."
            )
