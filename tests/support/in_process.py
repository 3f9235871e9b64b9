"""Runs a stage in the test's own process: starting one takes seconds of imports."""

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from stages import console


def run_main(main: Callable[[], None], folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `main` of a stage in `folder` as `python -m stages.<stage>` does: (status, stdout, stderr)."""
    stdout, stderr, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", ["stage", *arguments]),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            console.run(main)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, stdout.getvalue(), stderr.getvalue()
