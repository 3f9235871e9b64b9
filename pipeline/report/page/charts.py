"""Charts: where lines, points and ticks are in a picture that a template draws as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 330, 10, 180  # of a chart's lines, in its SVG of 340 x 210 (macros.html)
_MAX_POINTS = 2000  # of a chart


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A line from left to right."""

    name: str
    path: str  # of SVG
    colour: int  # number of the page's colours
    is_dashed: bool = False


@dataclass(frozen=True)
class Point:
    """A dot: its place, and what it stands for."""

    x: float
    y: float
    text: str
    clip_id: str


@dataclass(frozen=True)
class Chart:
    """A picture with two axes, and its text alternative."""

    title: str
    alt: str
    x_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    points: Sequence[Point] = ()
    marks: Sequence[Tick] = ()  # vertical lines
    y_label: str = ""


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to a picture's units, with round numbers as ticks."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self, *, at_most: int = 5) -> list[Tick]:
        """Round numbers within the scale."""
        step = _round_step((self.high - self.low) / at_most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [Tick(self.at(i * step), f"{i * step:.6g}") for i in range(first, last + 1)]


def axis_of(values: Iterable[float], *, start: float, end: float) -> Axis:
    """A scale for all finite values, with a margin; 0 to 1 where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return Axis(low - margin, high + margin, start, end)


def line_chart(
    title: str, lines: Sequence[tuple[str, Sequence[float], int, bool]], *, best_epochs: Sequence[int] = ()
) -> Chart:
    """Values of each epoch, from lines as (name, values, colour, is dashed)."""
    num_epochs = max(len(values) for _, values, _, _ in lines)
    x = Axis(0, max(num_epochs - 1, 1), _LEFT, _RIGHT)
    y = axis_of((value for _, values, _, _ in lines for value in values), start=_BOTTOM, end=_TOP)
    ends = ", ".join(f"{name} ends at {values[-1]:.4g}" for name, values, _, _ in lines if values)
    ticks = [tick for tick in x.ticks() if "." not in tick.text]
    return Chart(
        title,
        f"{title} over {num_epochs} epochs: {ends}.",
        "epoch",
        ticks,
        y.ticks(),
        lines=[Line(name, _path(values, x, y), colour, dashed) for name, values, colour, dashed in lines],
        marks=[Tick(x.at(epoch), f"best epoch: {epoch}") for epoch in best_epochs],
    )


def scatter_chart(title: str, rows: Sequence[tuple[str, float, float]]) -> Chart:
    """Answers (up) against the right values (to the right), from rows as (clip id, truth, answer)."""
    shown = rows[:: -(-len(rows) // _MAX_POINTS)]
    values = [value for _, *pair in shown for value in pair]
    x, y = axis_of(values, start=_LEFT, end=_RIGHT), axis_of(values, start=_BOTTOM, end=_TOP)
    diagonal = f"M{x.start},{y.start} L{x.end},{y.end}"
    points = [
        Point(x.at(truth), y.at(answer), f"{clip}: truth {truth:.4g}, answer {answer:.4g}", clip)
        for clip, truth, answer in shown
        if math.isfinite(truth) and math.isfinite(answer)
    ]
    error = sum(abs(truth - answer) for _, truth, answer in rows) / max(len(rows), 1)
    alt = f"{title}: {len(points)} points, answers against the right values; mean absolute error {error:.4g}."
    return Chart(
        title,
        alt,
        "truth",
        x.ticks(),
        y.ticks(),
        lines=[Line("equal", diagonal, 0, True)],
        points=points,
        y_label="answer",
    )


def _path(values: Sequence[float], x: Axis, y: Axis) -> str:
    """A path of SVG through the values, with gaps where a value is not finite."""
    parts, pen = [], "M"
    for epoch, value in enumerate(values):
        if math.isfinite(value):
            parts.append(f"{pen}{x.at(epoch)},{y.at(value)}")
        pen = "L" if math.isfinite(value) else "M"
    return " ".join(parts) + (" h0.01" if len(parts) == 1 else "")


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
