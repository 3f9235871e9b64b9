"""Groups of clips: a model's metrics, or several models', for each value of the columns meta_<name>."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.report.page.charts import axis_of
from pipeline.report.page.context import Context
from pipeline.report.runs import Run

if TYPE_CHECKING:  # imports torch, which takes seconds
    from pipeline.learn.metrics import Estimate
    from pipeline.report.run_comparison import RunComparison


Scored = tuple[float | None, Sequence[float] | None]  # a metric and the ends of its interval, if known


@dataclass(frozen=True)
class Group:
    """The clips with one value of a column meta_<name>, and a model's metrics on them."""

    value: str  # "": an empty cell
    num_clips: int
    scored: Scored  # by the headline metric
    others: Mapping[str, Scored] = field(default_factory=dict)  # by the name of the metric
    run: str = ""  # of several
    difference: "Estimate | None" = None  # from the best run


def groups_of_clips(context: Context) -> dict[str, Any] | None:
    """The values for the section's template; None where no clip has such a column."""
    run, comparison = context.run, context.extras.comparison
    parts = {} if comparison else run.metrics["recurrent"].get("by", {})
    columns = {name: list(_groups(run, part["values"])) for name, part in parts.items() if part["values"]}
    if comparison and comparison.by:
        columns[comparison.column] = list(_groups_of_runs(comparison))
    untold = {name: part["num_values"] for name, part in parts.items() if not part["values"]}
    if not columns and not untold:
        return None
    scored = [group.scored for groups in columns.values() for group in groups]
    ends = (end for value, interval in scored for end in (value, *(interval or ())))
    shown: dict[tuple[str, str], list[int]] = {}  # the numbers of the clips on the page
    for clip in context.gallery.clips:
        for cell in clip.first.meta.items():
            shown.setdefault(cell, []).append(clip.number)
    return {
        "columns": columns,
        "untold": untold,
        "metric": run.facts.headline.replace("_", " "),
        "caution": comparison.caution() if comparison else "",
        "scale": axis_of((end for end in ends if end is not None), start=0, end=100),
        "token": group_token,
        "shown": shown,
    }


def _groups(run: Run, values: Mapping[str, Any]) -> Iterator[Group]:
    """The groups of one run, from its scores by value."""
    for value, scores in values.items():
        metrics = {name: (scores[name], ends) for name, ends in scores["intervals"].items()}
        yield Group(value, scores["num_clips"], metrics.pop(run.facts.headline), metrics)


def _groups_of_runs(comparison: "RunComparison") -> Iterator[Group]:
    """For each value a group a run, the best one first."""
    for value, each in comparison.by.items():
        for run, estimate, ranked in zip(each.runs, each.estimates, each.ranking.settings, strict=True):
            scored = (estimate.value, estimate.interval)
            yield Group(value, each.num_clips, scored, run=run.name, difference=ranked.difference)


def group_token(column: str, value: str) -> str:
    """What stands for a value of a column in the page's links: no other token has an equals sign."""
    return f"{column}={value.encode().hex()}"
