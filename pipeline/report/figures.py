"""Figures: saved as PNG files, in fonts that have the characters of the figures' texts."""

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
    """Write a PNG with DOTS_PER_INCH; equal figures have equal bytes.

    Texts are drawn as they are: `$` starts no formula. Characters that the default font lacks are taken from
    other installed fonts; one warning names those that no font has.
    """
    texts = figure.findobj(Text)
    families = _families_for({char for text in texts for char in text.get_text()}, path=path)
    for text in texts:
        text.set_parse_math(False)
        text.set_fontfamily([*text.get_fontfamily(), *families])
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # _families_for has warned
        figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def _families_for(chars: Set[str], *, path: Path) -> list[str]:
    """Names of font families that together have the visible characters that the default font lacks."""
    usual = findfont(FontProperties())
    missing = {char for char in chars - _covered(usual, chars) if _is_visible(char)}
    if not missing:
        return []
    # Not fontManager's list: matplotlib makes it once a user, without the fonts that are installed later.
    covered = {font: _covered(font, missing) for font in sorted(findSystemFonts())}
    families = []
    while missing and (found := _best_font(covered, missing)):
        if all(entry.fname != found for entry in fontManager.ttflist):
            fontManager.addfont(found)
        families.append(FT2Font(found).family_name)
        missing -= covered[found]
    if missing:
        log.warning(
            "%s shows boxes for %d characters that no installed font has (%s: %s). Install a font that has"
            " them, e.g. `apt-get install fonts-noto-core fonts-noto-cjk`, and draw it again.",
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
    """A character's script, for a message: Devanagari, Thai, CJK (Hanzi and Kanji, too), or symbols."""
    name = unicodedata.name(char, "?").split()[0]
    return name.title() if unicodedata.category(char)[0] in "LM" else "symbols"


def _covered(font: str, chars: Set[str]) -> set[str]:
    """Which of `chars` a font file has; none of a font that matplotlib can't draw with."""
    try:
        face = FT2Font(font)
    except RuntimeError:
        return set()
    return {chr(code) for code in face.get_charmap()} & chars if face.scalable else set()


def _best_font(covered: dict[str, set[str]], missing: set[str]) -> str | None:
    """The font file with the most of the missing characters; upright and sans serif among equals."""

    def rank(font: str) -> tuple[int, bool, bool]:
        return len(covered[font] & missing), "Regular" in font, "Sans" in font and "Mono" not in font

    best = max(covered, key=rank, default=None)
    return best if best and covered[best] & missing else None
