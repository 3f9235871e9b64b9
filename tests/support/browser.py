"""A real headless Chromium that opens a page."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_BROWSER = "there is no Chromium: apt-get install chromium"

# Added to a copy of the page: its title becomes what the test asks for.
_ASK = (
    "<script>addEventListener('load', () => {{ document.title = JSON.stringify({expression}); }});</script>"
)


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run."""

    value: Any  # of the expression
    console: list[str]  # errors and warnings


def open_page(page: Path, *, width: int, expression: str, folder: Path, is_dark: bool = False) -> Opened:
    """Open a copy of the page in a window of this width in pixels; evaluate the expression of JavaScript."""
    assert CHROMIUM
    copy = folder / f"{width}.html"
    copy.write_text(page.read_text().replace("</body>", f"{_ASK.format(expression=expression)}</body>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
            "--enable-logging=stderr",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Opened(json.loads(title[1].replace("&quot;", '"').replace("&amp;", "&")), console)
