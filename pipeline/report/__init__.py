"""Pictures, tables and pages of a model's answers."""

from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"  # of `page` and `look`
