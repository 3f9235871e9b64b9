"""The pages: links resolve, commands and parameters exist, and the README is short."""

import re
from pathlib import Path

import pytest
import yaml

from stages.params import Params

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "manifests/*.md", "benchmarks/*.md", "pipeline/**/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
]


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_between_pages_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = (page.parent / name) if name else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or anchor in headings(target), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in re.findall(r"python -m (?:stages|benchmarks)\b.*", page.read_text()):
        module, *rest = re.split(r"[`#]", line.removeprefix("python -m "))[0].split()
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or path.is_dir(), f"{page}: {line}"
        sources = "".join(source.read_text() for source in path.parent.glob("*.py"))
        for option in re.findall(r"--[a-z][a-z-]*", " ".join(rest)):
            assert f'"{option}"' in sources, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_parameters_of_commands_exist(page: Path) -> None:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    all_params = Params.model_validate(params).model_dump()
    for added, name in re.findall(r"-S '?(\+\+)?([a-z_.]+)=", page.read_text()):
        section = all_params if added else params
        for key in name.split("."):
            assert key in section, f"{page}: {name}"
            section = section[key]


def test_the_readme_has_at_most_1200_words() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 1200
