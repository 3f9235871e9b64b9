"""HTML pages: their templates, and what these may use."""

import base64
import functools
import math

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import count_of
from pipeline.report import TEMPLATES
from pipeline.settings.sweep import value_text


@functools.cache
def templates() -> Environment:
    """The templates. Clip ids and labels may be anything: all that a template inserts is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data
    environment.filters["number"] = number
    environment.filters["of"] = count_of
    environment.filters["setting"] = value_text
    environment.filters["percent"] = lambda share: f"{100 * share:.4g}"
    # Our own files, which hold neither `</style` nor `</script`.
    environment.globals["style"] = Markup((TEMPLATES / "page.css").read_text())
    environment.globals["script"] = Markup((TEMPLATES / "page.js").read_text())
    return environment


def number(value: float) -> str:
    """A number for people, with four digits that count: `0.02346`, `1.25`, `12340`."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
