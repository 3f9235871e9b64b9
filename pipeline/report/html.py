"""HTML pages: their templates, and what these may use."""

import base64
import functools
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def templates() -> Environment:
    """The templates. Clip ids and labels may be anything: all that a template inserts is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = _data
    # Our own files, which hold neither `</style` nor `</script`.
    environment.globals["style"] = Markup((_TEMPLATES / "page.css").read_text())
    environment.globals["script"] = Markup((_TEMPLATES / "page.js").read_text())
    return environment


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
