"""One HTML page of what a model learned, or of several models side by side; it needs no network."""

from pipeline.report.page.context import Change, Extras
from pipeline.report.page.looks import Look
from pipeline.report.page.page import write_page

__all__ = ["Change", "Extras", "Look", "write_page"]
