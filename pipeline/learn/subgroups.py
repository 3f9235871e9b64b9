"""Subgroups: a model's metrics for each value of the manifest's columns meta_<name>."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pipeline.learn.evaluation import Score, comparison_table, score_predictions
from pipeline.learn.tasks import Predictions, Task
from pipeline.manifest import META

MAX_VALUES = 20  # of a column with more of them, a subgroup would be a few clips


@dataclass(frozen=True)
class Subgroups:
    """A model's scores by the values of one column."""

    column: str  # meta_<name>
    num_values: int
    scores: dict[str, Score] | None  # by value, "" for empty cells; None: more values than MAX_VALUES

    def as_json(self) -> dict[str, Any]:
        """The number of values, and the score of each."""
        scores = (
            None if self.scores is None else {value: each.as_json() for value, each in self.scores.items()}
        )
        return {"num_values": self.num_values, "values": scores}

    def table(self, *, label: str) -> str:
        """For people: a row a value, or the reason why there is none. `label` names the model."""
        if self.scores is None:
            return (
                f"{self.column} has {self.num_values} values. Metrics are reported for columns with at most"
                f" {MAX_VALUES}."
            )
        rows = {value or "(empty)": score for value, score in self.scores.items()}
        return comparison_table(rows, heading=f"{label}, by {self.column}")


def score_subgroups(
    predictions: Predictions, *, task: Task, num_resamples: int, seed: int
) -> tuple[Subgroups, ...]:
    """The scores for each column that a clip has a value of, sorted by column and value.

    A subgroup is scored as if its clips were the whole split. So its intervals come from draws of its own
    clips, and the idf of `cider` counts these alone.
    """
    names = sorted({name for clip in predictions.clips for name in clip.meta})
    found = []
    for name in names:
        members: dict[str, list[int]] = defaultdict(list)
        for number, clip in enumerate(predictions.clips):
            members[clip.meta.get(name, "")].append(number)
        scores: dict[str, Score] | None = None
        if len(members) <= MAX_VALUES:
            scores = {
                value: score_predictions(
                    predictions.take(members[value]), task=task, num_resamples=num_resamples, seed=seed
                )
                for value in sorted(members)
            }
        found.append(Subgroups(f"{META}{name}", len(members), scores))
    return tuple(found)
