"""Several runs beside each other: their settings, their metric, and the clips about which they differ."""

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import RunError, UnequalClipsError, few
from pipeline.learn.answers import Tally, asked, tally
from pipeline.learn.evaluation import with_interval
from pipeline.learn.metrics import Estimate, draw_clips, estimate, json_numbers
from pipeline.learn.sweeps import MIN_CLIPS_OF_VERDICT, Candidate, Ranking, rank
from pipeline.report.runs import Run, differing_settings
from pipeline.report.tables import aligned, write_csv

_MAX_CLIPS = 8  # that a line names
_MAX_NAMES = 8  # of runs in a sentence
_MAX_DUELS = 5  # in the text: the best run against so many others
_EQUAL = 1e-9  # a smaller difference about a clip is rounding


@dataclass(frozen=True)
class Duel:
    """The clips that the best run and another one differ on, those with the largest difference first."""

    name: str  # of the other run
    best_ahead: tuple[str, ...]  # clips about which the best run is more right
    best_behind: tuple[str, ...]


@dataclass(frozen=True)
class RunComparison:
    """Runs of one task, compared by its headline metric on the clips of one split."""

    runs: tuple[Run, ...]  # the best first
    estimates: tuple[Estimate, ...]  # of each run: its metric
    tallies: tuple[Tally, ...]  # of each run; all have the same clips
    ranking: Ranking  # each run is a setting of its own
    num_left_out: int  # clips that not all runs were asked about

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
        return self.ranking.num_clips

    def settings(self) -> dict[str, tuple[str, ...]]:
        """The settings that differ, by dotted key: the value of each run; `-` where it does nothing."""
        return differing_settings(self.runs)

    def claim(self) -> str:
        """Sentences that say what may be claimed."""
        best, *others = (run.name for run in self.runs)
        if self.num_clips < MIN_CLIPS_OF_VERDICT:
            return (
                f"Too few {self.split} clips to tell which run is the best ({self.num_clips}; it takes"
                f" {MIN_CLIPS_OF_VERDICT})."
            )
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
        elif behind:
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
            found.append(Duel(run.name, first, last))
        return found

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
        return {
            "task": self.runs[0].task,
            "split": self.split,
            "metric": self.metric,
            "num_clips": self.num_clips,
            "num_left_out": self.num_left_out,
            "claim": self.claim(),
            "warning": self.warning(),
            **json_numbers({"optimism": self.ranking.optimism}),
            "runs": self.rows(),
            "settings": {key: dict(zip(names, row, strict=True)) for key, row in self.settings().items()},
            "clips": [asdict(duel) for duel in self.duels()],
        }

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
        parts = [aligned(self._cells()), self.left_out(), self.claim(), self.warning()]
        table = [("", *(run.name for run in self.runs))]
        table += [(key, *values) for key, values in self.settings().items()]
        if len(table) == 1:
            parts.append("No settings differ.")
        else:
            parts.append(aligned(table if len(table) >= len(self.runs) else list(zip(*table, strict=True))))
        parts.append("\n".join(line for duel in self.duels()[:_MAX_DUELS] for line in self._lines(duel)))
        return "\n\n".join(filter(None, parts))

    def _cells(self) -> list[list[str]]:
        """The cells of a table: a row a run."""
        rows = [[f"{self.num_clips} {self.split} clips", self._words, "difference", "loss"]]
        for run, value, counted, ranked in zip(
            self.runs, self.estimates, self.tallies, self.ranking.settings, strict=True
        ):
            difference = with_interval(ranked.difference, sign="+") if ranked.difference else "best"
            rows.append([run.name, with_interval(value), difference, f"{counted.loss:.4f}"])
        return rows

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
            yield f"{first} {ahead.format(second)} about {_clips(clips)}{names}."

    @property
    def _words(self) -> str:
        return self.metric.replace("_", " ")


def compare_runs(
    runs: Sequence[Run], *, common: bool = False, num_resamples: int = 1000, seed: int = 0
) -> RunComparison:
    """Compare runs on the clips that they were asked about; see `rank`.

    Args:
        runs: two or more, of one task and split. Their order changes nothing: equal ones are sorted by name.
        common: leave out the clips that not all runs were asked the same about.
        num_resamples: draws of the clips.
        seed: of the draws.

    Raises:
        RunError: for less than two runs, the same run twice, one without answers, other tasks or splits.
        UnequalClipsError: for runs that were asked about other clips, or have other right answers for them.
    """
    if len(runs) < 2:
        raise RunError("Comparing takes at least two runs.")
    for first, second in combinations(runs, 2):
        _check_pair(first, second)
    answers = {run.name: _answers(run) for run in runs}
    questions = {name: asked(table) for name, table in answers.items()}
    difference = next(_clip_differences(questions), "")
    if difference and not common:
        raise UnequalClipsError(difference)
    ours, *theirs = questions.values()
    clips = [clip for clip, rows in ours.items() if all(other.get(clip) == rows for other in theirs)]
    if not clips:
        raise RunError(f"There is no clip that all runs were asked the same about. {difference}")
    tallies = {
        name: tally(table.filter(pc.is_in(table["clip_id"], pa.array(clips))))
        for name, table in answers.items()
    }
    facts = runs[0].facts
    ranking = rank(
        [
            Candidate(name, name, each.metric, math.inf if math.isnan(each.loss) else each.loss)
            for name, each in sorted(tallies.items(), reverse=True)  # of equal ones, the last is the best
        ],
        num_clips=len(clips),
        sign=facts.monitors[facts.headline],
        num_resamples=num_resamples,
        seed=seed,
    )
    by_name, order = {run.name: run for run in runs}, [each.members[0] for each in ranking.settings]
    draws = list(draw_clips(len(clips), num_resamples=num_resamples, seed=seed))
    return RunComparison(
        runs=tuple(by_name[name] for name in order),
        estimates=tuple(
            estimate(
                facts.headline,
                ranking.values[name],
                np.array([tallies[name].metric(counts) for counts in draws]),
                num_clips=len(clips),
            )
            for name in order
        ),
        tallies=tuple(tallies[name] for name in order),
        ranking=ranking,
        num_left_out=len({clip for each in questions.values() for clip in each}) - len(clips),
    )


def _check_pair(first: Run, second: Run) -> None:
    """Raise RunError for two runs that can't be compared, whatever their clips are."""
    for run in (first, second):
        if run.predictions is None:
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
    if not differing_settings([first, second]) and _answers(first).equals(_answers(second)):
        raise RunError(
            f"{first.name} and {second.name} are the same run: their settings and answers are equal."
        )


def _answers(run: Run) -> Any:
    """The answers of the model, without those of its controls."""
    return run.predictions.filter(pc.field("model") == "recurrent")


def _clip_differences(questions: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A sentence for each run that was not asked the same about the same clips as the first one."""
    (first, ours), *others = questions.items()
    for second, theirs in others:
        if missing := ours.keys() ^ theirs.keys():
            yield (
                f"{first} was asked about {_clips(ours)}, {second} about {len(theirs)}; only one of"
                f" them about {few(sorted(missing))}."
            )
        elif changed := [clip for clip, rows in ours.items() if theirs[clip] != rows]:
            yield (
                f"{first} and {second} were asked about other frames, or have other right answers, for"
                f" {_clips(changed)}: {few(sorted(changed))}."
            )


def _clips(clips: Sized) -> str:
    """`1 clip`, `2 clips`."""
    return f"{len(clips)} clip{'s' * (len(clips) != 1)}"


def _all(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`; of many, the first ones."""
    if len(names) > _MAX_NAMES:
        return few(names, at_most=_MAX_NAMES)
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
