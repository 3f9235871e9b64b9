"""A picture of a sweep: the val metric of its members against each key that differs."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from pipeline.learn.sweeps import is_number
from pipeline.report.figures import save_figure
from pipeline.report.sweeps import SweepResult, varied_keys
from pipeline.settings.sweep import value_text

_NUM_COLUMNS = 3
_MAX_TICKS = 4  # with more values, the scale has round numbers


def draw_sweep(path: Path, result: SweepResult) -> None:
    """A panel a key: a dot a member that was trained to its end, the winner's in orange, the baseline dashed.

    Bars are means of members with the same value. Numbers have their place on a scale, a logarithmic one if
    they span a factor of ten; other values stand beside each other.
    """
    metrics = result.ranking.values
    members = [member for member in result.members if member.name in metrics]
    keys = varied_keys(members)
    num_columns = max(1, min(_NUM_COLUMNS, len(keys)))
    num_rows = max(1, -(-len(keys) // num_columns))
    figure = Figure(figsize=(0.8 + 2.6 * num_columns, 0.6 + 2.2 * num_rows), layout="constrained")
    all_axes = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for axes, key in zip_longest(all_axes.flatten(), keys):
        if key is None:
            axes.set_visible(False)
            continue
        places = _set_scale(axes, [member.values.get(key, "-") for member in members])
        shown = [metrics[member.name] for member in members]
        axes.plot(places, shown, "o", color="tab:blue", markersize=5, alpha=0.6)
        by_place: dict[float, list[float]] = {}
        for place, member, metric in zip(places, members, shown, strict=True):
            by_place.setdefault(place, []).append(metric)
            if member.name == result.ranking.winner:
                axes.plot(place, metric, "o", color="tab:orange", markersize=5, zorder=3)
        for place, values in by_place.items():
            if len(values) > 1:
                axes.plot(place, fmean(values), "_", color="black", markersize=16)
        if not math.isnan(result.baseline):
            axes.axhline(result.baseline, color="tab:grey", linestyle="--", linewidth=1)
        axes.set_title(key.partition(".")[2], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="y", alpha=0.3)
    for axes in all_axes[:, 0]:
        axes.set_ylabel(f"val {result.monitor.replace('_', ' ')}", fontsize=8)
    save_figure(figure, path)


def _set_scale(axes: Any, values: Sequence[Any]) -> list[float]:
    """Give the panel the values' scale; the place of each on it."""
    if all(map(is_number, values)):
        if min(values) > 0 and max(values) >= 10 * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        if len(set(values)) <= _MAX_TICKS:
            axes.set_xticks(sorted(set(values)), [value_text(value) for value in sorted(set(values))])
        axes.margins(x=0.2)
        return [float(value) for value in values]
    kinds = sorted(
        {(not is_number(value), value if is_number(value) else 0, value_text(value)) for value in values}
    )
    texts = [text for _, _, text in kinds]
    axes.set_xticks(range(len(texts)), texts)
    axes.set_xlim(-0.5, len(texts) - 0.5)
    return [float(texts.index(value_text(value))) for value in values]
