"""A sweep's results: a table for people, the same as JSON and CSV."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.learn.evaluation import with_interval
from pipeline.learn.metrics import Estimate, json_numbers
from pipeline.learn.sweeps import Contribution, Ranked, Ranking
from pipeline.report.tables import aligned, write_csv
from pipeline.settings.sweep import value_text


@dataclass(frozen=True)
class Tried:
    """A member of a sweep, and how far its training came."""

    name: str
    values: Mapping[str, Any]  # of the sweep's keys, without those that do nothing here
    setting: str  # the same for members that differ in the seed alone
    val_losses: tuple[float, ...]  # of each epoch
    note: str = ""  # why it was not trained to its end; "": it was


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found."""

    monitor: str  # the val metric that settings are ranked by
    members: tuple[Tried, ...]
    ranking: Ranking  # of the members that were trained to their end
    contributions: tuple[Contribution, ...]  # of keys, from the same members
    baseline: float = math.nan  # the val metric of the winner's baseline; NaN: it was not trained
    test: Mapping[str, Estimate] = field(default_factory=dict)  # the metric of `winner` and `baseline` ...
    split: str = "test"  # ... on the clips of this split

    def verdict(self) -> str:
        """How many were tried, and how many of them may be as good as the winner."""
        ranking = self.ranking
        trained = [member for member in self.members if member.val_losses]
        num_settings = len({member.setting for member in trained})
        verdict = f"{len(trained)} tried"
        if num_settings < len(trained):
            verdict = f"{num_settings} settings tried ({len(trained)} members)"
        shortage = ranking.units.shortage("them from the winner", split="val")
        verdict += f", {shortage or f'{ranking.num_indistinguishable} indistinguishable from the winner'}"
        if stopped := num_settings - len(ranking.settings):
            verdict += f", {stopped} not trained to the end"
        if missing := len(self.members) - len(trained):
            verdict += f", {missing} of {len(self.members)} members not trained"
        return f"{verdict}."

    def rows(self) -> list[dict[str, Any]]:
        """A row a member, those of the best setting first; None for what is not known."""
        tried, rows = {member.name: member for member in self.members}, []
        for setting in self.ranking.settings:
            for name, value in zip(setting.members, setting.values, strict=True):
                rows.append(self._row(tried.pop(name), value, setting))
        rest = sorted(tried.values(), key=lambda member: (-len(member.val_losses), _lowest(member)))
        return rows + [self._row(member, math.nan, None) for member in rest]

    def _row(self, member: Tried, value: float, setting: Ranked | None) -> dict[str, Any]:
        difference = setting.difference if setting else None
        known = difference or Estimate(math.nan, math.nan, math.nan)
        numbers = {
            "val_loss": _lowest(member),
            f"val_{self.monitor}": value,
            "setting_mean": setting.value if setting else math.nan,
            "difference": known.value,
            "low": known.low,
            "high": known.high,
        }
        return {
            "member": member.name,
            "values": dict(member.values),
            "epochs": len(member.val_losses),
            **json_numbers(numbers),
            "is_distinguishable": setting.is_distinguishable if setting else None,
            "note": member.note,
        }

    def as_json(self) -> dict[str, Any]:
        """Everything, for JSON; None for what is not defined."""
        return {
            "monitor": self.monitor,
            "verdict": self.verdict(),
            "winner": self.ranking.winner,
            **json_numbers({"optimism": self.ranking.optimism, "baseline": self.baseline}),
            "num_val_clips": self.ranking.units.num_clips,
            "num_val_units": len(self.ranking.units),
            self.split: {name: json_numbers(asdict(estimate)) for name, estimate in self.test.items()},
            "members": self.rows(),
            "contributions": [{**asdict(each), "range": each.range} for each in self.contributions],
        }

    def write_csv(self, path: Path) -> None:
        """Write the rows, with a column for each key of the sweep."""
        keys = list(dict.fromkeys(key for member in self.members for key in member.values))
        rows = self.rows()
        header = [name for name in rows[0] if name != "values"]
        write_csv(
            path,
            [header[0], *keys, *header[1:]],
            ([r[header[0]], *map(r["values"].get, keys), *map(r.get, header[1:])] for r in rows),
        )

    def text(self, *, at_most: int = 40) -> str:
        """The table of at most so many settings, and what else there is to say."""
        name = self.monitor.replace("_", " ")
        parts = [aligned(self._settings(at_most)), self.verdict()]
        if self.contributions:
            parts.append(aligned(self._contributions()))
        if not math.isnan(self.baseline):
            parts.append(f"Baseline: val {name} {self.baseline:.4f}.")
        if self.test:
            scores = ", ".join(f"{model} {with_interval(score)}" for model, score in self.test.items())
            optimism = f"The winner's val {name} is optimistic by about {self.ranking.optimism:.4f}"
            parts.append(
                f"On the {self.split} clips, {name}: {scores}.\n{optimism}: the winner was chosen by it."
            )
        return "\n\n".join(parts)

    def _settings(self, at_most: int) -> list[list[str]]:
        """The cells of a table: a row a setting, the best first; the unfinished last, with their note."""
        keys, tried = varied_keys(self.members), {member.name: member for member in self.members}
        has_seeds = len({member.setting for member in self.members}) < len(self.members)
        header = [key.partition(".")[2] for key in keys]
        header += [f"val {self.monitor.replace('_', ' ')}", *["of each seed"] * has_seeds]
        rows = [[*header, "difference", "val loss", "epochs"]]
        for setting in self.ranking.settings:
            members = [tried.pop(name) for name in setting.members]
            seeds = ", ".join(f"{value:.4f}" for value in setting.values)
            difference = with_interval(setting.difference, sign="+") if setting.difference else "winner"
            cells = [f"{setting.value:.4f}", *[seeds] * has_seeds, difference]
            rows.append([*_texts(members[0], keys), *cells, *_progress(members)])
        groups: dict[tuple[str, str], list[Tried]] = {}
        for member in tried.values():
            groups.setdefault((member.setting, member.note), []).append(member)
        for members in sorted(groups.values(), key=lambda each: fmean(map(_lowest, each))):
            cells = ["", *[""] * has_seeds, members[0].note]
            rows.append([*_texts(members[0], keys), *cells, *_progress(members)])
        left = len(rows) - 1 - at_most
        return rows[: at_most + 1] + ([[f"and {left} more", *[""] * (len(rows[0]) - 1)]] if left > 0 else [])

    def _contributions(self) -> list[list[str]]:
        name = self.monitor.replace("_", " ")
        rows = [["key", "value", "members", f"mean val {name}", "lowest to highest", "range of means"]]
        for each in self.contributions:
            for number, value in enumerate(each.values):
                ends = f"{value.lowest:.4f} to {value.highest:.4f}"
                first = [each.key.partition(".")[2], f"{each.range:.4f}"] if number == 0 else ["", ""]
                cells = [value.value, str(value.num_members), f"{value.mean:.4f}", ends]
                rows.append([first[0], *cells, first[1]])
        return rows


def varied_keys(members: Sequence[Tried], *, seed: str = "train.seed") -> list[str]:
    """The keys, without the seed, that differ among members."""
    keys = dict.fromkeys(key for member in members for key in member.values if key != seed)
    return [key for key in keys if len({value_text(member.values.get(key, "-")) for member in members}) > 1]


def _texts(member: Tried, keys: Sequence[str]) -> list[str]:
    return [value_text(member.values.get(key, "-")) for key in keys]


def _progress(members: Sequence[Tried]) -> list[str]:
    """The val loss, a mean over seeds, and the epochs."""
    fewest, most = (of(len(member.val_losses) for member in members) for of in (min, max))
    loss = fmean(map(_lowest, members))
    return [
        f"{loss:.4f}" if math.isfinite(loss) else "",
        f"{fewest}" if fewest == most else f"{fewest}-{most}",
    ]


def _lowest(member: Tried) -> float:
    return min((loss for loss in member.val_losses if not math.isnan(loss)), default=math.inf)
