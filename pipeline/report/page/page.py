"""The page: each section as HTML, and all of them in one file."""

import logging
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pipeline.errors import PipelineError
from pipeline.report.html import templates
from pipeline.report.page.context import Context, Extras
from pipeline.report.page.sections import SECTIONS
from pipeline.report.runs import Run
from pipeline.system.files import make_folder, write_atomically

log = logging.getLogger(__name__)

_MAX_BYTES = 19_000_000
_MAX_CLIPS = 200


def write_page(path: Path, runs: Sequence[Run], *, title: str, extras: Extras = Extras()) -> int:
    """Write a page of one evaluated run, or of several side by side; its size in bytes.

    All runs are of one task and one manifest. A section that fails becomes a notice, which is logged, too.
    Raises ValueError for no runs, and OSError where the page can't be written.
    """
    if not runs:
        raise ValueError("A page needs at least one run.")
    num_clips = _MAX_CLIPS
    page = render_page(runs, title=title, extras=extras, num_clips=num_clips)
    while len(page) > _MAX_BYTES and num_clips:  # texts may be of any length
        num_clips //= 4
        page = render_page(runs, title=title, extras=extras, num_clips=num_clips)
    make_folder(path.parent)
    write_atomically(path, page)
    return len(page)


def render_page(
    runs: Sequence[Run], *, title: str, extras: Extras = Extras(), num_clips: int = _MAX_CLIPS
) -> bytes:
    """The page with at most so many clips, as HTML in UTF-8."""
    context = Context(runs, extras, num_clips)
    shown = []
    for section in SECTIONS:
        try:
            values = section.build(context)
            if values is None:
                continue
            html = templates().get_template(f"{section.name}.html").render(values, section=section)
        except Exception as error:  # a page with a notice is better than none
            reason = str(error) if isinstance(error, PipelineError | OSError) else repr(error)
            log.error("The page's section %r failed: %s", section.title, reason)
            html = templates().get_template("notice.html").render(section=section, reason=reason)
        shown.append((section, Markup(html)))
    page = (
        templates()
        .get_template("page.html")
        .render(title=title, runs=runs, sections=shown, faults=extras.faults)
    )
    return page.encode("utf-8", "replace")
