"""What torchvision knows of weights of its own: how their images were prepared, how their network is built.

Weights are known by their source: the name of an enum's member, such as IMAGENET1K_V2, or the name of the
file that torchvision downloads for it.
"""

from pathlib import PurePosixPath
from typing import Any

from pipeline.contract import Interpolation, Preprocessing
from pipeline.settings.networks import is_own


def known_weights(arch: str, source: str) -> Any:
    """The member of torchvision's enum of weights of an arch that a source names; None for other sources."""
    if is_own(arch):
        return None
    from torchvision.models import get_model_weights  # imported here: it takes seconds

    names = {name: member for member in get_model_weights(arch) for name in (member.name, _file_name(member))}
    return names.get(source)


def _file_name(member: Any) -> str:
    return PurePosixPath(member.url).name


def trained_preprocessing(arch: str, source: str) -> Preprocessing:
    """How images were prepared for the weights from a source; by default 256, 224 and bilinear."""
    member = known_weights(arch, source)
    if member is None:
        return Preprocessing()
    transforms = member.transforms()
    interpolation: Interpolation = transforms.interpolation.value
    return Preprocessing(
        resize=_side_or_sides(transforms.resize_size),
        crop=_side_or_sides(transforms.crop_size),
        interpolation=interpolation,
        antialias=getattr(transforms, "antialias", False),  # those of clips never do
    )


def _side_or_sides(sizes: Any) -> int | tuple[int, int]:
    if len(sizes) == 1:
        return int(sizes[0])
    height, width = sizes
    return height, width


def trained_arguments(arch: str, source: str) -> dict[str, Any]:
    """The arguments that torchvision's function sets by itself for weights of its own."""
    member = known_weights(arch, source)
    if member is None:
        return {}
    if arch.startswith("vit_"):
        side, _ = member.meta["min_size"]
        return {} if side == 224 else {"image_size": side}
    return {"transform_input": True} if arch in ("googlenet", "inception_v3") else {}
