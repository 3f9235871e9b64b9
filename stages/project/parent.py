"""The commit that a workspace is on, and what the workspace has varied since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.report.page import Change
from stages.params import PARAMS, params_of, read_params
from stages.project.git import run_git
from stages.project.runs import settings_of
from stages.resolution import resolved

_NOTHING = "-"  # stands for a setting that does nothing


def parent_name(project: Path) -> str:
    """The commit that a project is on, for people. Raises StoreError without git or a commit."""
    line = run_git(project, "log", "-1", "--format=commit %h (%s)").stdout
    return line.decode(errors="replace").strip()


def changes_since_parent(project: Path) -> list[Change]:
    """The settings that can change a result, and that params.yaml asks for otherwise than that of the commit.

    Raises StoreError without git, or where the commit has no params.yaml, and ConfigError for settings of
    another version.
    """
    document = yaml.safe_load(run_git(project, "show", f"HEAD:./{PARAMS}").stdout)
    parent = params_of(document, path=Path(f"HEAD:{PARAMS}"))
    before, now = (
        settings_of(resolved(params, digest=lambda _: "", clips=lambda _: ""))
        for params in (parent, read_params(project / PARAMS))
    )
    return list(_changes(before, now))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    pairs = {key: (before.get(key, _NOTHING), now.get(key, _NOTHING)) for key in [*before, *now]}
    return [Change(key, *pair) for key, pair in pairs.items() if pair[0] != pair[1]]
