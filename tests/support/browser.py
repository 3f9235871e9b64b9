"""A real headless Chromium that opens a page."""

import html
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

# A window has at least 500 pixels, a frame any number.
_FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title></title>
<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe>"""

# Added to the page: the title of the window becomes what the test asks for.
_ASK = """<script>
addEventListener("load", () => {{ parent.document.title = JSON.stringify({expression}); }});
</script></body>"""


@dataclass(frozen=True)
class Opened:
    """A page after its scripts have run."""

    value: Any  # of the expression
    console: list[str]  # errors and warnings


def open_page(page: Path, *, width: int, expression: str, folder: Path, is_dark: bool = False) -> Opened:
    """Open a copy of the page in a frame of this width in pixels; evaluate the expression of JavaScript."""
    assert CHROMIUM
    copy = folder / f"{width}.html"
    asking = page.read_text().replace("</body>", _ASK.format(expression=expression))
    copy.write_text(_FRAME.format(width=width, page=html.escape(asking)))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "--disable-gpu",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width + 100},1000",
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
    return Opened(json.loads(html.unescape(title[1])), console)
