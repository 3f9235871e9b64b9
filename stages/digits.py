"""The embedded corpus: moving handwritten digits as H.264 videos, and their manifest."""

import argparse
import shutil
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from pipeline.corpora.digits import DigitsConfig, render_clip, write_video
from pipeline.manifest import write_manifest
from stages import console
from stages.params import load_section

CORPUS = Path("corpus/digits")
MANIFEST = Path("manifests/digits.csv")


def main() -> None:
    """Write the videos of the corpus and their manifest."""
    argparse.ArgumentParser(
        prog="python -m stages.digits",
        description=__doc__,
        epilog=f"Reads digits.* from params.yaml. Writes {CORPUS}/<clip_id>.mp4 and {MANIFEST}, whose sources"
        f" are relative to {CORPUS}. Equal parameters give equal bytes.",
    ).parse_args()
    config = load_section("digits", DigitsConfig)
    shutil.rmtree(
        CORPUS, ignore_errors=True
    )  # its files may be hardlinks of DVC's cache: never write into them
    clips = []
    for index in tqdm(range(config.num_clips), desc="digits", unit="clip"):
        clip, frames = render_clip(index, config=config)
        write_video(CORPUS / clip.sources[0], frames, fps=config.fps)
        clips.append(clip)
    write_manifest(MANIFEST, clips)
    counts = Counter(clip.split for clip in clips)
    print(f"{MANIFEST}: " + ", ".join(f"{count} {split}" for split, count in counts.items()))


if __name__ == "__main__":
    console.run(main)
