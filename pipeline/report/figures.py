"""Figures: saved as PNG files, in fonts that have the characters of their texts."""

import io
import logging
import unicodedata
import warnings
from collections.abc import Set
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from pipeline.errors import few
from pipeline.system.files import write_atomically

log = logging.getLogger(__name__)

DOTS_PER_INCH = 100

_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories of characters


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG of DOTS_PER_INCH; equal figures have equal bytes.

    Texts are shown as they are, `$` included. Characters that the usual font lacks are taken from other
    installed fonts; one warning names those that no font has.
    """
    texts = figure.findobj(Text)
    families = _families_for({char for text in texts for char in text.get_text()}, path=path)
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily([*text.get_fontfamily(), *families])
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # told above
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _families_for(chars: Set[str], *, path: Path) -> list[str]:
    """Names of font families that together have the visible characters which the usual font lacks."""
    usual = findfont(FontProperties())
    missing = {char for char in chars - _covered(usual, chars) if _is_visible(char)}
    if not missing:
        return []
    # Not fontManager's own list: it is made once for each user, and knows no fonts installed later.
    covered = {font: _covered(font, missing) for font in sorted(findSystemFonts())}
    families = []
    while missing and (found := _best_font(covered, missing)):
        if all(entry.fname != found for entry in fontManager.ttflist):
            fontManager.addfont(found)
        families.append(FT2Font(found).family_name)
        missing -= covered[found]
    if missing:
        log.warning(
            "%s has boxes for %d characters that no installed font has (%s: %s). Install one that does, such"
            " as those of `apt-get install fonts-noto-core fonts-noto-cjk`, and draw it again.",
            path,
            len(missing),
            ", ".join(sorted({_script(char) for char in missing})),
            few(sorted(missing)),
        )
    return families


def _is_visible(char: str) -> bool:
    is_selector = unicodedata.name(char, "").startswith("VARIATION SELECTOR")
    return unicodedata.category(char) not in _INVISIBLE and not is_selector


def _script(char: str) -> str:
    """A word for a message: Devanagari, Thai, CJK (which are also Hanzi, Kanji), symbols."""
    name = unicodedata.name(char, "?").split()[0]
    return name.title() if unicodedata.category(char)[0] in "LM" else "symbols"


def _covered(font: str, chars: Set[str]) -> set[str]:
    """The characters that a font file has; none, if matplotlib can't draw with it."""
    try:
        face = FT2Font(font)
    except RuntimeError:
        return set()
    return {chr(code) for code in face.get_charmap()} & chars if face.scalable else set()


def _best_font(covered: dict[str, set[str]], missing: set[str]) -> str | None:
    """The font file with most of the missing characters, upright and sans serif if there is a choice."""

    def rank(font: str) -> tuple[int, bool, bool]:
        return len(covered[font] & missing), "Regular" in font, "Sans" in font and "Mono" not in font

    best = max(covered, key=rank, default=None)
    return best if best and covered[best] & missing else None
