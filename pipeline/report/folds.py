"""Folds for people and for machines: a row a fold, the means over them, and what they show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.learn.evaluation import with_interval
from pipeline.learn.folds import FoldScore
from pipeline.learn.metrics import Units, json_numbers


@dataclass(frozen=True)
class FoldsResult:
    """The task's headline metric of a model and its controls, over folds."""

    metric: str
    sign: int  # 1: more is better, -1: less is
    folds: Mapping[str, int]  # by name, the number of its test clips
    units: Units  # of the test clips of all folds
    seeds: Sequence[int]
    scores: Mapping[str, FoldScore]  # of recurrent, shuffled and baseline
    labels: Mapping[str, str]  # the same three for people

    def text(self) -> str:
        """A table, and a sentence for each control."""
        rows = [["fold", *self.labels.values(), "clips"]]
        for place, (name, num_clips) in enumerate(self.folds.items()):
            values = (f"{self.scores[model].values[place]:.4f}" for model in self.labels)
            rows.append([name, *values, str(num_clips)])
        means = (with_interval(self.scores[model].mean) for model in self.labels)
        deviations = (f"{self.scores[model].deviation:.4f}" for model in self.labels)
        rows += [["mean", *means, self.units.text()], ["deviation", *deviations, ""]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        )
        heading = f"{self.metric.replace('_', ' ')} on the test clips of {len(self.folds)} folds"
        if len(self.seeds) > 1:
            heading += f", mean of {len(self.seeds)} seeds"
        sentences = [
            self._sentence(f"Against {self.labels['baseline']}", "baseline", "the model is better"),
            self._sentence("In order against shuffled", "shuffled", "the model uses the order of frames"),
        ]
        return "\n".join([heading, "", table, "", *sentences])

    def as_json(self) -> dict[str, Any]:
        """All numbers; None for what is not defined."""
        return {
            "metric": self.metric,
            "folds": dict(self.folds),
            "seeds": list(self.seeds),
            **{model: self._numbers(model) for model in self.scores},
        }

    def headline(self) -> dict[str, float | None]:
        """The model's mean over folds, its deviation and interval, and the means of both controls.

        All names begin with `folds_`: a table of experiments has other metrics beside them.
        """
        numbers = self._mean("recurrent")
        controls = {name: self.scores[name].mean.value for name in ("shuffled", "baseline")}
        found = {self.metric: numbers.pop("mean"), **numbers, **controls}
        return {f"folds_{name}": value for name, value in json_numbers(found).items()}

    def _mean(self, model: str) -> dict[str, float | None]:
        score = self.scores[model]
        mean = score.mean
        return json_numbers(
            {"mean": mean.value, "deviation": score.deviation, "low": mean.low, "high": mean.high}
        )

    def _numbers(self, model: str) -> dict[str, Any]:
        values = dict(zip(self.folds, self.scores[model].values.tolist(), strict=True))
        return {**self._mean(model), "folds": json_numbers(values)}

    def _sentence(self, heading: str, control: str, claim: str) -> str:
        difference = (self.scores["recurrent"] - self.scores[control]).mean
        if shortage := self.units.shortage(f"whether {claim}"):
            verdict = shortage
        elif min(self.sign * difference.low, self.sign * difference.high) > 0:
            verdict = claim
        else:
            verdict = f"it is not shown that {claim}"
        return f"{heading}: {self.metric} {with_interval(difference, sign='+')}: {verdict}."
