"""The page in a real browser, without a network: what people click, on a phone and on a wide screen."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.report.page import Extras, write_page
from tests.report.test_page import PAIRS, classified, grouped, with_labels
from tests.support.browser import open_page
from tests.support.media import write_video

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]

# Does what a reader does, and leaves what there is to see then in the page's title.
CLICKS = """
<script>
addEventListener("load", async () => {
  const texts = (selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent);
  const names = () => texts(".clip:not([hidden]) h4");
  const column = () => texts("#classes tbody th");
  const click = (selector) => document.querySelector(selector).click();
  const seen = { all: names().length };
  click("a[data-cell='0:1']");
  seen.cell = names();
  seen.words = document.querySelector(".filter span").textContent;
  seen.focus = document.activeElement.querySelector("h4").textContent;
  dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  seen.after = names().length;
  seen.back = document.activeElement.dataset.cell;
  click("#classes th:last-child button");
  seen.up = column();
  click("#classes th:last-child button");
  seen.down = column();
  seen.sort = document.querySelector("#classes th:last-child").getAttribute("aria-sort");
  const video = document.querySelector("video");
  seen.video = [video.videoWidth, video.videoHeight, video.error];
  seen.strip = document.querySelector(".pictures img").naturalWidth;
  seen.width = document.documentElement.scrollWidth - innerWidth;
  seen.loaded = performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 5));
  document.title = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    write_video(folder / "clip0.mp4", num_frames=12, size=(64, 48))
    write_page(folder / "page.html", [classified(folder, PAIRS)], title="Toy", extras=Extras(root=folder))
    clicked = folder / "clicked.html"
    clicked.write_text((folder / "page.html").read_text().replace("</body>", f"{CLICKS}</body>"))
    return clicked


@pytest.mark.parametrize("width", [360, 2000])
def test_the_page_does_what_is_clicked_and_asks_for_nothing_outside(page: Path, tmp_path: Path, width: int):
    assert CHROMIUM
    options = [
        "--headless=new",
        "--no-sandbox",  # root in a container has none
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    ]
    shown = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, check=True)
    assert "CONSOLE" not in shown.stderr
    title = re.search("<title>(.*?)</title>", shown.stdout)
    assert title
    seen = json.loads(title[1])
    assert seen.pop("width") <= 0
    assert set(seen.pop("loaded")) <= {"data:"}
    assert seen == {
        "all": len(PAIRS),
        "cell": ["clip002"],
        "words": "1 clip: truth down, answer left",
        "focus": "clip002",
        "after": len(PAIRS),
        "back": "0:1",
        "up": ["left", "down", "up"],
        "down": ["down", "up", "left"],
        "sort": "descending",
        "video": [48, 64, None],
        "strip": 398,
    }


GROUPS = """(() => {
  const texts = (selector) => [...document.querySelectorAll(selector)].map((node) => node.textContent.trim());
  const clips = () => texts(".clip:not([hidden]) h4").sort();
  const click = (selector) => document.querySelector(selector).click();
  const seen = { width: document.documentElement.scrollWidth - innerWidth };
  click("#groups th:last-of-type button");
  seen.sorted = texts("#groups tbody th");
  click("#groups tbody a");
  seen.group = clips();
  click("#classes a[data-cell='2:missed']");
  seen.missed = clips();
  seen.words = document.querySelector(".filter span").textContent;
  return seen;
})()"""


def test_groups_are_sorted_and_lead_to_their_clips_as_the_outcomes_of_labels_do(
    tmp_path: Path,
) -> None:
    scores = {
        value: {"mAP": 0.5, "loss": loss, "num_clips": 2, "intervals": {"mAP": None, "loss": None}}
        for value, loss in (("", 0.3), ("2", 0.1))
    }
    run = grouped(with_labels(tmp_path), {"meta_camera": {"num_values": 2, "values": scores}})
    write_page(tmp_path / "page.html", [run], title="Toy")
    opened = open_page(tmp_path / "page.html", width=360, expression=GROUPS, folder=tmp_path, is_dark=True)
    assert opened.console == []
    assert opened.value.pop("width") <= 0
    assert opened.value == {
        "sorted": ["2", "(empty)"],
        "group": ["a", "b", "c"],
        "missed": ["a"],
        "words": "1 clip: walk is right, but not said",
    }
