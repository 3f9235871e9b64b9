"""Images of the embedded corpus: each scanned digit once; and sets of these images."""

import argparse
import shutil
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pipeline.corpora.digits import NUM_SCANS, DigitsConfig, image_sets, render_image
from pipeline.manifest import write_manifest
from stages import console
from stages.params import load_section

CORPUS = Path("corpus/digit_images")
IMAGES, SETS = Path("manifests/digit_images.csv"), Path("manifests/digit_sets.csv")


def main() -> None:
    """Write the images of the corpus and their two manifests."""
    argparse.ArgumentParser(
        prog="python -m stages.digit_images",
        description=__doc__,
        epilog=f"Reads digits.* from params.yaml. Writes {CORPUS}/<clip_id>.png, {IMAGES} (an image a clip)"
        f" and {SETS} (several images a clip). Equal parameters give equal pixels.",
    ).parse_args()
    config = load_section("digits", DigitsConfig)
    shutil.rmtree(CORPUS, ignore_errors=True)  # may be hardlinks of DVC's cache: never write into them
    CORPUS.mkdir(parents=True)
    clips = []
    for scan in tqdm(range(NUM_SCANS), desc="digit images", unit="image"):
        clip, pixels = render_image(scan, config=config)
        Image.fromarray(pixels).save(CORPUS / clip.sources[0])
        clips.append(clip)
    sets = image_sets(clips, config=config)
    write_manifest(IMAGES, clips)
    write_manifest(SETS, sets)
    print(f"{IMAGES}: {len(clips)} clips; {SETS}: {len(sets)} clips")


if __name__ == "__main__":
    console.run(main)
