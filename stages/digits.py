"""The embedded corpus: renders the videos and images of a manifest that are missing."""

import argparse
import re
from pathlib import Path

from pipeline.errors import ManifestError
from pipeline.manifest import read_manifest
from pipeline.system.files import atomic_path
from stages import console
from stages.bars import ProgressBar

MANIFEST = Path("manifests/digits.csv")
FOLDERS = {".mp4": Path("corpus/digits"), ".png": Path("corpus/digit_images")}


def main() -> None:
    """Render the missing sources of manifests of the embedded corpus."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.digits",
        description=__doc__,
        epilog="Writes corpus/digits/<source>.mp4 and corpus/digit_images/<source>.png. Files that are there"
        " stay as they are. `manifests/digit*` names all manifests of the embedded corpus.",
    )
    parser.add_argument("manifests", nargs="*", type=Path, metavar="MANIFEST", help=f"default: {MANIFEST}")
    manifests: list[Path] = parser.parse_args().manifests or [MANIFEST]
    paths = sorted({path for manifest in manifests for path in _paths(manifest)})
    missing = [path for path in paths if not path.exists()]
    for path in ProgressBar(missing, desc="digits", unit="file", disable=not missing):
        _render(path)
    done = (
        f"rendered {len(missing)} of {len(paths)} files"
        if missing
        else f"none of {len(paths)} files is missing"
    )
    print(f"{', '.join(map(str, manifests))}: {done}.")


def _paths(manifest: Path) -> list[Path]:
    """The files that a manifest names. Raises ManifestError for a source that is not of this corpus."""
    sources = [source for clip in read_manifest(manifest) for source in clip.sources]
    for source in sources:
        if re.fullmatch(r"(digit|crowd|number)_\d{5}\.mp4|scan_\d{4}\.png", source) is None:
            raise ManifestError(
                f"{manifest}: the source {source!r} is not of the embedded corpus, which has the videos"
                " digit_<clip>.mp4, crowd_<clip>.mp4 and number_<clip>.mp4, and the images scan_<scan>.png."
            )
    return [FOLDERS[Path(source).suffix] / source for source in sources]


def _render(path: Path) -> None:
    from PIL import Image

    from pipeline.corpora import digits  # slow to import

    config, number = digits.DigitsConfig(), int(path.stem.rpartition("_")[2])
    with atomic_path(path) as partial:
        if path.suffix == ".mp4":
            kinds = {
                "digit": digits.render_clip,
                "crowd": digits.render_crowd,
                "number": digits.render_number,
            }
            _, frames = kinds[path.stem.partition("_")[0]](number, config=config)
            digits.write_video(partial, frames, fps=config.fps)
        else:
            _, pixels = digits.render_image(number, config=config)
            Image.fromarray(pixels).save(partial, format="png")


if __name__ == "__main__":
    console.run(main)
