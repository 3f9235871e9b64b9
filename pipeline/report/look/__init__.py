"""A look at a corpus before anything is computed: a survey, what it finds, and a contact sheet."""

from pipeline.report.look.findings import Finding, find, group_alike
from pipeline.report.look.sheet import verdict, write_sheet
from pipeline.report.look.survey import Seen, choose, survey_clips

__all__ = ["Finding", "Seen", "choose", "find", "group_alike", "survey_clips", "verdict", "write_sheet"]
