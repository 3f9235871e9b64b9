"""Runs beside each other: their settings, their metric, and the clips about which they differ, in words."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import count_of, few
from pipeline.learn.answers import Tally
from pipeline.learn.evaluation import with_interval
from pipeline.learn.metrics import Estimate, json_numbers, mcnemar_p
from pipeline.learn.sweeps import Ranking
from pipeline.report.runs import Run, differing_settings
from pipeline.report.tables import aligned, write_csv

_MAX_CLIPS = 8  # that a line names
_MAX_NAMES = 8  # of runs in a sentence
_MAX_DUELS = 5  # in the text: the best run against so many others
EMPTY = "(empty)"  # stands for an empty cell of a manifest
_EQUAL = 1e-9  # a smaller difference about a clip is rounding


@dataclass(frozen=True)
class Duel:
    """The clips that the best run and another one differ on, those with the largest difference first."""

    name: str  # of the other run
    best_ahead: tuple[str, ...]  # clips about which the best run is more right
    best_behind: tuple[str, ...]
    p: float | None = None  # of McNemar's exact test; None where it does not apply


@dataclass(frozen=True)
class RunComparison:
    """Runs of one task, compared by its headline metric on the clips of one split."""

    runs: tuple[Run, ...]  # the best first
    estimates: tuple[Estimate, ...]  # of each run: its metric
    tallies: tuple[Tally, ...]  # of each run; all have the same clips
    ranking: Ranking  # each run is a setting of its own
    folds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # the metric of each run, by fold
    num_left_out: int = 0  # clips that not all runs were asked about
    column: str = ""  # meta_<name>, by whose values `by` has the clips; "": by none
    by: Mapping[str, "RunComparison"] = field(default_factory=dict)  # of the clips with each value; "": empty

    @property
    def metric(self) -> str:
        """The headline metric of the runs' task."""
        return self.runs[0].facts.headline

    @property
    def split(self) -> str:
        """Whose clips were answered."""
        return self.runs[0].split

    @property
    def num_clips(self) -> int:
        """Of all runs."""
        return self.ranking.units.num_clips

    def settings(self) -> dict[str, tuple[str, ...]]:
        """The settings that differ, by dotted key: the value of each run; `-` where it does nothing."""
        return differing_settings(self.runs)

    def claim(self) -> str:
        """Sentences that say what may be claimed."""
        best, *others = (run.name for run in self.runs)
        if shortage := self.ranking.units.shortage("which run is the best", split=self.split):
            return f"{shortage[0].upper()}{shortage[1:]}."
        behind = [each.members[0] for each in self.ranking.settings[1:] if each.is_distinguishable]
        level = [name for name in others if name not in behind]
        said = []
        if behind:
            said.append(f"By {self._words} on clips like these, {best} is better than {_all(behind)}.")
        if level:
            them = "the two" if len(level) == 1 else "them"
            said.append(
                f"It is not shown that {best} is better than {_all(level)}: other clips might turn {them}"
                " around."
            )
        if list(self.settings()) == ["train.seed"]:
            said.append("Only their seeds differ, so any difference is chance in training.")
        elif behind and not self.folds:
            said.append("This is about the trained models: it does not say what another seed would do.")
        return " ".join(said)

    def warning(self) -> str:
        """A sentence about the choice of the best of more than two runs; "" for two."""
        if len(self.runs) < 3:
            return ""
        optimism = self.ranking.optimism
        amount = "an unknown amount" if math.isnan(optimism) else f"about {optimism:.4f}"
        choice = f"{self.runs[0].name} is the best of {len(self.runs)} by {self.split} {self._words}"
        advice = ""
        if self.split == "test":
            advice = "; choose by the val clips, and look at the test clips of the chosen run alone"
        return f"{choice}, so this number is too good by {amount}{advice}."

    def duels(self) -> list[Duel]:
        """The best run against each other one, clip by clip."""
        best, *others = (each.by_clip for each in self.tallies)
        clip_ids = self.tallies[0].clip_ids
        found = []
        for run, other in zip(self.runs[1:], others, strict=True):
            ahead = best - other  # (N,)
            first, last = (
                tuple(clip_ids[n] for n in np.argsort(-leads, kind="stable") if leads[n] > _EQUAL)
                for leads in (ahead, -ahead)
            )
            is_right_or_wrong = self.metric == "accuracy" and np.isin([best, other], (0, 1)).all()
            is_testable = is_right_or_wrong and self.ranking.units.noun == "clips"
            p = mcnemar_p(len(first), len(last)) if is_testable else None
            found.append(Duel(run.name, first, last, p))
        return found

    def mcnemar(self) -> str:
        """The p values of McNemar's exact test in a sentence; "" where it does not apply.

        It takes accuracy, with one answer a clip, and clips that do not depend on each other: no groups.
        """
        found = [f"{duel.name} {duel.p:.2g}" for duel in self.duels() if duel.p is not None]
        if not found:
            return ""
        pairs = few(found, at_most=_MAX_NAMES)
        if len(self.runs) == 2:
            return f"McNemar's exact test of the two: p = {pairs.rpartition(' ')[2]}."
        return (
            f"McNemar's exact test against {self.runs[0].name}: p = {pairs}. Each p is about one pair alone;"
            " the intervals of the differences hold for all pairs together."
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row a run, the best first; None for what is not known."""
        rows = []
        for run, value, counted, ranked in zip(
            self.runs, self.estimates, self.tallies, self.ranking.settings, strict=True
        ):
            difference = ranked.difference or Estimate(math.nan, math.nan, math.nan)
            numbers = {self.metric: value.value, "low": value.low, "high": value.high, "loss": counted.loss}
            ends = {"difference": difference.value, "from": difference.low, "to": difference.high}
            rows.append(
                {
                    "run": run.name,
                    **json_numbers({**numbers, **ends}),
                    "is_distinguishable": ranked.is_distinguishable if ranked.difference else None,
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """Everything, for JSON; None for what is not defined."""
        names = [run.name for run in self.runs]
        groups = {value: {**each._sizes(), "runs": each.rows()} for value, each in self.by.items()}
        return {
            "task": self.runs[0].task,
            "split": self.split,
            "metric": self.metric,
            **self._sizes(),
            "num_left_out": self.num_left_out,
            "claim": self.claim(),
            "mcnemar": self.mcnemar(),
            "warning": self.warning(),
            **json_numbers({"optimism": self.ranking.optimism}),
            "runs": self.rows(),
            **({"folds": self._folds()} if self.folds else {}),
            "settings": {key: dict(zip(names, row, strict=True)) for key, row in self.settings().items()},
            "clips": [asdict(duel) for duel in self.duels()],
            **({"by": {self.column: groups}} if groups else {}),
        }

    def _folds(self) -> dict[str, dict[str, float | None]]:
        """The metric of each run, by fold and name."""
        names = [run.name for run in self.runs]
        return {
            fold: json_numbers(dict(zip(names, values, strict=True))) for fold, values in self.folds.items()
        }

    def _sizes(self) -> dict[str, int]:
        return {"num_clips": self.num_clips, "num_units": len(self.ranking.units)}

    def write_csv(self, path: Path) -> None:
        """Write the rows, with a column for each setting that differs."""
        rows, settings = self.rows(), self.settings()
        header = list(rows[0])
        write_csv(
            path,
            [header[0], *settings, *header[1:]],
            (
                [row[header[0]], *(values[number] for values in settings.values()), *map(row.get, header[1:])]
                for number, row in enumerate(rows)
            ),
        )

    def text(self) -> str:
        """Tables and sentences for people."""
        parts = [aligned(self._cells()), self.left_out(), self.claim(), self.mcnemar(), self.warning()]
        if self.folds:
            names = ["fold", *(run.name for run in self.runs)]
            parts.append(aligned([names, *([f, *map("{:.4f}".format, v)] for f, v in self.folds.items())]))
        table = [("", *(run.name for run in self.runs))]
        table += [(key, *values) for key, values in self.settings().items()]
        if len(table) == 1:
            parts.append("No settings differ.")
        else:
            parts.append(aligned(table if len(table) >= len(self.runs) else list(zip(*table, strict=True))))
        if self.by:
            parts += [aligned(self._group_cells()), self.caution()]
        parts.append("\n".join(line for duel in self.duels()[:_MAX_DUELS] for line in self._lines(duel)))
        return "\n\n".join(filter(None, parts))

    def _cells(self) -> list[list[str]]:
        """The cells of a table: a row a run."""
        rows = [[self._asked(), self._words, "difference", "loss"]]
        for run, value, counted, ranked in zip(
            self.runs, self.estimates, self.tallies, self.ranking.settings, strict=True
        ):
            difference = with_interval(ranked.difference, sign="+") if ranked.difference else "best"
            rows.append([run.name, with_interval(value), difference, f"{counted.loss:.4f}"])
        return rows

    def _asked(self) -> str:
        """`30 test clips`, `30 test clips of 5 folds in 10 groups`."""
        folds = f" of {count_of(len(self.folds), 'folds')}" if self.folds else ""
        return self.ranking.units.text(f"{self.split} clips{folds}")

    def _group_cells(self) -> list[list[str]]:
        """The cells of a table: a row a run for each value of the column, its best run first."""
        rows = [[f"by {self.column}", "clips", "run", self._words, "difference", "loss"]]
        for value, each in self.by.items():
            firsts = iter([(value or EMPTY, each.ranking.units.text())])
            rows += ([*next(firsts, ("", "")), *cells] for cells in each._cells()[1:])
        return rows

    def caution(self) -> str:
        """A sentence about comparisons of many groups of clips; "" without groups."""
        if not self.by:
            return ""
        return (
            f"Each value of {self.column} is a comparison by itself: the more of them, the likelier is a"
            " difference by chance."
        )

    def left_out(self) -> str:
        """A sentence about the clips that are left out; "" if there are none."""
        if not self.num_left_out:
            return ""
        return f"{self.num_left_out} clips are left out: not all runs were asked the same about them."

    def _lines(self, duel: Duel) -> Iterator[str]:
        """Which of the two is ahead about which clips."""
        best, ahead = self.runs[0].name, self.tallies[0].ahead
        for first, second, clips in ((best, duel.name, duel.best_ahead), (duel.name, best, duel.best_behind)):
            names = f": {few(clips, at_most=_MAX_CLIPS)}" if clips else ""
            yield f"{first} {ahead.format(second)} about {count_of(len(clips), 'clips')}{names}."

    @property
    def _words(self) -> str:
        return self.metric.replace("_", " ")


def _all(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of many, the first ones."""
    if len(names) > _MAX_NAMES:
        return few(names, at_most=_MAX_NAMES)
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
