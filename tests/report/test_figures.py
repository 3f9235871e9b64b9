"""Pictures show the characters of their texts, or one line says which they do not have."""

import logging
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font

from pipeline.report import figures
from pipeline.report.figures import save_figure

SCRIPTS = {"Devanagari": "कखग", "Thai": "กขค", "Chinese": "男孩跑", "Korean": "소년이"}


def draw(path: Path, text: str) -> bytes:
    figure = Figure((3, 1))
    figure.text(0.1, 0.5, text)
    save_figure(figure, path)
    return path.read_bytes()


def is_installed(text: str) -> bool:
    codes = set(map(ord, text))
    for font in findSystemFonts():
        face = FT2Font(font)
        if face.scalable and codes <= face.get_charmap().keys():
            return True
    return False


@pytest.mark.parametrize("script", SCRIPTS)
def test_characters_come_from_whichever_font_has_them(tmp_path, caplog, script):
    first, *others = SCRIPTS[script]
    if not is_installed(SCRIPTS[script]):
        pytest.skip(f"no installed font has {script}: apt-get install fonts-noto-core fonts-noto-cjk")
    pictures = {draw(tmp_path / "a.png", f"a{char}") for char in (first, *others)}
    assert len(pictures) == len(SCRIPTS[script])  # boxes would be equal
    assert not caplog.records


@pytest.mark.parametrize("script", SCRIPTS)
def test_one_line_names_the_characters_that_no_font_has(tmp_path, caplog, monkeypatch, script):
    monkeypatch.setattr(figures, "findSystemFonts", list)
    with caplog.at_level(logging.WARNING):
        pictures = {draw(tmp_path / "a.png", f"a{char}") for char in SCRIPTS[script]}
    assert len(pictures) == 1  # boxes
    assert len(caplog.records) == len(SCRIPTS[script])  # a line for each picture
    for record, char in zip(caplog.records, SCRIPTS[script], strict=True):
        message = record.getMessage()
        named = {"Chinese": "Cjk", "Korean": "Hangul"}.get(script, script)
        assert message.startswith(f"{tmp_path}/a.png shows boxes for 1 characters that no installed font has")
        assert f"({named}: {char})" in message
        assert "apt-get install fonts-noto-core" in message


def test_spaces_and_joiners_need_no_font(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(figures, "findSystemFonts", list)
    draw(tmp_path / "a.png", "a\u3000b\u200dc\n❤\ufe0f")
    assert not caplog.records


def test_dollars_and_backslashes_are_no_formulas(tmp_path):
    draw(tmp_path / "a.png", r"from $5 to 6_$, \frac{$}$")
