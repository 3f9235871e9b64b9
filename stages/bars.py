"""Progress on stderr: bars on a terminal, and plain lines in a pipe or a log file."""

import sys
import time
from typing import Any, Self

from tqdm import tqdm

_REFRESH_SECONDS = 5.0
_LINE_SECONDS = 10.0


class ProgressBar(tqdm):  # type: ignore[type-arg] # at runtime it takes no type
    """tqdm on a terminal. Elsewhere a line every ten seconds, and a last one if the bar took so long."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """The arguments of tqdm."""
        self._is_drawn = sys.stderr.isatty()
        self._begin_seconds = self._line_seconds = time.monotonic()
        if not self._is_drawn:
            options |= {"ncols": 0, "leave": False}
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draw the bar, or write a line where the last one was long ago."""
        if self._is_drawn:
            super().display(msg, pos)
            return
        is_last = msg is not None  # tqdm wipes a bar that it does not leave
        now = time.monotonic()
        if now - (self._begin_seconds if is_last else self._line_seconds) >= _LINE_SECONDS:
            self._line_seconds = now
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def clear(self, nolock: bool = False) -> None:
        """Make room for another line, where a bar is in the way."""
        if self._is_drawn:
            super().clear(nolock)


class Bars:
    """A bar for each name in turn. One thread at a time may call it."""

    def __init__(self, unit: str) -> None:
        """`unit` is the word for what is counted."""
        self._unit = unit
        self._bar: ProgressBar | None = None

    def show(
        self, name: str, num_done: int, num_total: int, *, unit: str | None = None, delay: float = 0
    ) -> None:
        """Move the bar of `name` to `num_done`. A new bar appears after `delay` seconds."""
        bar = self._bar_of(name, unit=unit or self._unit, delay=delay)
        bar.total = num_total
        if num_done != bar.n:
            bar.update(num_done - bar.n)
        elif time.time() - bar.last_print_t > _REFRESH_SECONDS:
            bar.refresh()
        if num_done == num_total:
            bar.close()  # log lines would draw it again

    def note(self, name: str, text: str) -> None:
        """Put a text behind the bar of `name`, from its next move on."""
        self._bar_of(name, unit=self._unit).set_postfix_str(text, refresh=False)

    @property
    def elapsed_seconds(self) -> float:
        """How long the last bar has been there."""
        return 0.0 if self._bar is None else self._bar.format_dict["elapsed"]

    def _bar_of(self, name: str, *, unit: str, delay: float = 0) -> ProgressBar:
        if self._bar is None or self._bar.desc != name:
            self.close()
            self._bar = ProgressBar(desc=name, unit=unit, unit_scale=unit == "B", delay=delay)
        return self._bar

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
