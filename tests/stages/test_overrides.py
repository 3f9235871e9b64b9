"""Flags of `dvc exp run`: what differs, in Hydra's grammar, without spaces."""

from typing import Any

import pytest

from pipeline.errors import ConfigError
from stages.overrides import flags, overlaid


@pytest.mark.parametrize(
    ("now", "wanted", "expected"),
    [
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}}, ["-S a.y=3"]),
        ({"a": {}}, {"a": {"x": 0.00001}}, ["-S ++a.x=1e-05"]),
        ({}, {"a": {"x": True}}, ["-S ++a={x:true}"]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 1}}, ["-S ~a.y"]),
        ({"a": {"y": None}}, {"a": {}}, ["-S a.y=0", "-S ~a.y"]),
        ({"a": {"x": "all"}}, {"a": {"x": {"fps": 5}}}, ["-S a.x={fps:5}"]),
        ({"a": {"x": {"fps": 5}}}, {"a": {"x": {"every": 2}}}, ["-S ++a.x.every=2", "-S ~a.x.fps"]),
        ({"a": {"x": {"fps": 5}}}, {"a": {"x": "all"}}, ["-S a.x=all"]),
        ({"a": {"x": [1]}}, {"a": {"x": ["b", None, [2.5]]}}, ["-S a.x=[b,null,[2.5]]"]),
        ({"a": {"x": 1}}, {"a": {"x": "1"}}, ['-S a.x="1"']),
        ({"a": {"x": None}}, {"a": {"x": "null"}}, ['-S a.x="null"']),
        ({"a": {"x": None}}, {"a": {"x": "random:0"}}, ['-S a.x="random:0"']),
        ({"a": {"x": None}}, {"a": {"x": "/data/a,b.csv"}}, ['-S a.x="/data/a,b.csv"']),
        ({"a": {"x": None}}, {"a": {"x": "manifests/my_clips-2.csv"}}, ["-S a.x=manifests/my_clips-2.csv"]),
        ({"a": {"x": [1, {"y": 2}]}}, {"a": {"x": [1, {"y": 2}]}}, []),
    ],
)
def test_flags_are_what_differs(now: dict[str, Any], wanted: dict[str, Any], expected: list[str]) -> None:
    assert list(flags(now, wanted)) == expected


@pytest.mark.parametrize("text", ["my videos", "a\nb", "a\\b"])
def test_a_text_that_the_shell_would_split_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="can't hold the space or backslash"):
        list(flags({"a": {"x": 1}}, {"a": {"x": text}}))


def test_an_overlay_merges_mappings_and_replaces_all_else() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": "all", "c": [1, 2]}
    changes = {"a": {"y": {"w": 3}}, "b": {"fps": 5}, "c": [3]}
    assert overlaid(base, changes) == {"a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": {"fps": 5}, "c": [3]}
    assert base == {"a": {"x": 1, "y": {"z": 2}}, "b": "all", "c": [1, 2]}
