"""Views in settings: a list of names and parts, in which `corners` stands for all four corners."""

from collections import Counter
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from pipeline.contract import Corner, FrameView


def _each_corner(views: Any) -> Any:
    if not isinstance(views, list | tuple):
        return views
    return [name for view in views for name in (get_args(Corner) if view == "corners" else [view])]


def _each_once(views: tuple[FrameView, ...]) -> tuple[FrameView, ...]:
    if not views:
        raise ValueError("name at least one view")
    if twice := [view.name for view, count in Counter(views).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is there several times; name each view once")
    return views


_View = Annotated[FrameView, WithJsonSchema({"type": "string"})]

# center, flip, corners or one of them (top_left, ...), {scale: 0.8}; {scale: 0.8, flip: true} is one view.
Views = Annotated[tuple[_View, ...], BeforeValidator(_each_corner), AfterValidator(_each_once)]
