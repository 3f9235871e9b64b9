"""Progress bars on stderr."""

from typing import NoReturn, Self

from tqdm import tqdm


class Bars:
    """A progress bar on stderr for each name in turn."""

    def __init__(self, unit: str) -> None:
        """`unit` is the word for what is counted."""
        self._unit = unit
        self._bar: tqdm[NoReturn] | None = None

    def show(self, name: str, num_done: int, num_all: int) -> None:
        """Move the bar of `name` to `num_done`."""
        bar = self._bar_of(name)
        bar.total = num_all
        bar.update(num_done - bar.n)

    def note(self, name: str, **values: object) -> None:
        """Write values behind the bar of `name`."""
        self._bar_of(name).set_postfix(values)

    def _bar_of(self, name: str) -> "tqdm[NoReturn]":
        if self._bar is None or self._bar.desc != name:
            self.close()
            self._bar = tqdm(desc=name, unit=self._unit)
        return self._bar

    def close(self) -> None:
        """Leave the last bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
