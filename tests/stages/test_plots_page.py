"""The page of `dvc plots show` needs no network."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tests.support.project import REPOSITORY, Project

pytestmark = pytest.mark.slow

LOADING = {"src", "href", "data", "srcset", "poster", "action"}  # attributes that name what a page loads
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clone of a project with DVC's settings of this repository, and one plot of each kind that it has."""
    origin = Project(tmp_path_factory.mktemp("plots") / "origin")
    origin.path.mkdir()
    origin.run("git", "init", "--quiet")
    origin.run("git", "config", "user.email", "test@example.com")
    origin.run("git", "config", "user.name", "Test")
    origin.dvc("init", "--quiet")
    shutil.copy(REPOSITORY / ".dvc/config", origin.path / ".dvc/config")
    shutil.copytree(REPOSITORY / ".dvc/plots-page", origin.path / ".dvc/plots-page")
    (origin.path / "curve.csv").write_text("epoch,train,val\n0,2.0,1.5\n1,1.0,1.25\n")
    (origin.path / "answers.csv").write_text("actual,predicted\nленo,up\nup,up\n")
    (origin.path / "values.csv").write_text("actual,predicted\n1,2\n3,3\n")
    plots = [
        {"Loss": {"x": "epoch", "y": {"curve.csv": ["train", "val"]}}},
        {"Confusion": {"template": "confusion", "x": "actual", "y": {"answers.csv": "predicted"}}},
        {"Values": {"template": "scatter", "x": "actual", "y": {"values.csv": "predicted"}}},
    ]
    (origin.path / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    origin.commit()
    return origin.clone(origin.path.with_name("clone"))


@pytest.fixture(scope="module")
def page(clone: Project) -> Path:
    clone.dvc("plots", "show")
    return clone.path / "dvc_plots/index.html"


class Loaded(HTMLParser):
    """Collects the addresses that a page loads from when it is opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.addresses += [value or "" for name, value in attrs if name in LOADING]


def test_the_page_loads_nothing_and_holds_the_scripts_that_draw(page: Path) -> None:
    text = page.read_text()
    assert Loaded(text).addresses == []
    assert "cdn" not in re.sub(r"<script> // vega.*?</script>", "", text, flags=re.DOTALL)
    for package in ("vega@5.33.1", "vega-lite@5.23.0", "vega-embed@6.29.0"):
        assert text.count(f"<script> // {package}") == 1
    assert text.count("vegaEmbed('#") == 3
    assert "{" + "plot_divs" + "}" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_without_a_network_draws_every_plot(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM
    options = [
        "--headless",
        "--no-sandbox",  # root in a container has none
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    shown = subprocess.run([CHROMIUM, *options, page.as_uri()], capture_output=True, text=True, check=True)
    assert shown.stdout.count("<canvas") == 3


def test_a_temporary_experiments_folder_has_the_page(clone: Project) -> None:
    """DVC runs such an experiment, like a queued one, in a checkout of its own below .dvc/tmp."""
    command = "dvc plots show --out shown && grep -c vega-embed@6.29.0 shown/index.html > count.txt"
    stage = {"stages": {"show": {"cmd": command, "outs": ["count.txt"]}}}
    path = clone.path / "dvc.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **stage}))
    clone.commit()
    output = clone.dvc("exp", "run", "--temp", "--name", "temporary")
    assert ".dvc/tmp/exps" in output
    assert clone.dvc("get", ".", "count.txt", "--rev", "temporary", "--out", "copy.txt") == ""
    assert (clone.path / "copy.txt").read_text() == "1\n"
