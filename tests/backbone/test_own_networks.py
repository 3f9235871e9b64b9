"""Networks of the user's own: built by a function that the settings name, and by no other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.backbone import Backbone
from pipeline.backbone.sources import obtain_weights, own_code
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.deploy.end_to_end import make_backbone
from pipeline.errors import ConfigError, ContractError, ForeignCodeError, WeightsError
from pipeline.extraction import make_targets
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.weights import WeightsConfig
from pipeline.system.own_code import OwnCode

CPU = torch.device("cpu")
CODE = '''"""A small network."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width, kind="sound"):
        super().__init__()
        self.kind = kind
        conv = nn.Conv2d(3, width, 3, stride=2)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(width, 8, 3)

    def forward(self, x):
        x = self.stem(x)
        if self.kind == "dropout":
            x = nn.functional.dropout(x, 0.5)
        if self.kind == "batch":
            x = x - x.mean(dim=0, keepdim=True)
        return self.last(x)


def build(width=6, kind="sound"):
    return Net(width, kind)


def no_network():
    return 3
'''


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Path]:
    """The file of a module that is imported anew in each test."""
    path = tmp_path / "own_nets_of_a_test.py"
    path.write_text(CODE)
    before = list(sys.path)
    yield path
    sys.path[:] = before
    for name in [name for name in sys.modules if name.partition(".")[0] == path.stem]:
        del sys.modules[name]


def config_of(
    code: Path, *, function: str = "build", source: str = "random:0", **arguments: object
) -> WeightsConfig:
    return WeightsConfig(
        arch=f"{code.stem}:{function}",
        code=str(code),
        source=source,
        arguments=arguments,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def test_a_network_of_ones_own_gives_its_maps_and_says_its_code(code: Path) -> None:
    config = config_of(code, width=4)
    weights = obtain_weights(config)
    assert weights.sha256 == obtain_weights(config).sha256
    assert weights.arguments == {"width": 4}
    extract = ExtractConfig(taps=("stem", "last"), preprocessing={"resize": 32, "crop": 32})  # type: ignore[arg-type]
    backbone = Backbone(weights, taps=extract.taps, device=CPU, crop=(32, 32))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    maps = backbone(pixels)
    network = sys.modules[code.stem].build(4).eval()
    network.load_state_dict(weights.state, strict=False)
    with torch.no_grad():
        expected = network(pixels.float() / 127.5 - 1)
    torch.testing.assert_close(maps["last"], expected, rtol=1e-4, atol=1e-5)
    contract = make_targets(extract, weights, backbone)[1].contract
    assert contract.code == weights.code == own_code(config).version()
    assert contract.arch == f"{code.stem}:build"
    assert contract.model_copy(update={"code": "other"}).digest() != contract.digest()
    with pytest.raises(ContractError, match="another version of own_nets_of_a_test:build"):
        make_backbone(contract.model_copy(update={"code": "other"}), weights, device=CPU)


def test_an_edit_of_the_code_is_another_version_and_a_comment_is_not(code: Path) -> None:
    own = own_code(config_of(code))
    before = own.version()
    code.write_text(CODE + "\n# a comment\n")
    assert own.version() == before
    code.write_text(CODE.replace("stride=2", "stride=1"))
    assert own.version() != before


def test_code_that_was_edited_since_it_was_imported_is_imported_anew(code: Path) -> None:
    package = code.with_suffix("")
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text("from own_nets_of_a_test.parts import build\n")
    parts = package / "parts.py"
    parts.write_text("def build():\n    return 3\n")
    own = OwnCode(f"{package.name}.nets:build", {}, package)
    build = own.load()
    assert (build(), own.load()) == (3, build)
    parts.write_text("def build():\n    return 40\n")  # while a worker lives
    assert own.load()() == 40


def test_code_that_the_settings_do_not_name_is_never_imported(code: Path, tmp_path: Path) -> None:
    own = own_code(config_of(code, width=4))
    path = tmp_path / "w.safetensors"
    save_weights(obtain_weights(config_of(code, width=4)), path=path)
    assert load_weights(path, own=own).own == own
    sys.modules.pop(code.stem)
    for other in (
        None,
        own_code(config_of(code, width=5)),
        own_code(config_of(code, function="other", width=4)),
    ):
        with pytest.raises(ForeignCodeError, match="other code is not imported"):
            load_weights(path, own=other)
    assert code.stem not in sys.modules


@pytest.mark.parametrize("kind", ["dropout", "batch"])
def test_a_network_whose_answer_depends_on_the_batch_is_refused(code: Path, kind: str) -> None:
    weights = obtain_weights(config_of(code, kind=kind))
    Backbone(weights, taps=["stem"], device=CPU, crop=(32, 32))
    with pytest.raises(ConfigError, match=r"other maps at last when an image is in another batch"):
        Backbone(weights, taps=["last"], device=CPU, crop=(32, 32))


def test_what_builds_no_network_is_refused_with_the_reason(code: Path, tmp_path: Path) -> None:
    for config, reason in (
        (config_of(code, function="missing"), "the module has no such function"),
        (config_of(code, function="no_network"), "gives a int, not a torch.nn.Module"),
        (config_of(code, hight=3), r"can't be called with {'hight': 3}: .*unexpected keyword"),
        (config_of(code, source="IMAGENET1K_V1"), r"Unknown weights source .* Available: built"),
        (config_of(code).model_copy(update={"code": None}), "is of no installed package"),
        (config_of(code).model_copy(update={"code": str(tmp_path / "x.py")}), "is not in .*x.py"),
    ):
        with pytest.raises(ConfigError, match=reason):
            obtain_weights(config)
    with pytest.raises(ValueError, match="code is that of one's own network"):
        WeightsConfig(arch="resnet18", code="nets.py")
    with pytest.raises(ValueError, match="no module and function"):
        WeightsConfig(arch="my nets:build")


def test_a_file_that_does_not_fit_the_network_lists_the_differences(code: Path, tmp_path: Path) -> None:
    config = config_of(code, width=4)
    save_weights(obtain_weights(config), path=tmp_path / "four.safetensors")
    wide = config_of(code, source=str(tmp_path / "four.safetensors"), width=5)
    with pytest.raises(WeightsError, match=r"stem\.0\.weight is \(4, 3, 3, 3\), not \(5, 3, 3, 3\)"):
        obtain_weights(wide)


FACTORY = """
import timm

def build(name, **options):
    return timm.create_model(name, num_classes=0, **options)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "tap", "shape"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, "blocks.3", (192, 4, 4)),
        ("resnet10t", {}, "layer2", (128, 8, 8)),
    ],
)
def test_networks_of_timm_come_through_a_factory_of_five_lines(
    tmp_path: Path, name: str, options: dict[str, object], tap: str, shape: tuple[int, int, int]
) -> None:
    timm = pytest.importorskip("timm")
    code = tmp_path / f"timm_nets_{name}.py"
    code.write_text(FACTORY)
    weights = obtain_weights(config_of(code, source="random:0", name=name, **options))
    backbone = Backbone(weights, taps=[tap], device=CPU, crop=(64, 64))
    assert backbone.map_shape(tap, 64, 64) == shape
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    network = timm.create_model(name, num_classes=0, **options).eval()
    network.load_state_dict(weights.state, strict=False)
    found = {}
    network.get_submodule(tap).register_forward_hook(lambda _module, _inputs, output: found.update(x=output))
    with torch.no_grad():
        network(pixels.float() / 127.5 - 1)
    expected = found["x"]
    if expected.ndim == 3:
        expected = expected[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(backbone(pixels)[tap], expected, rtol=1e-3, atol=1e-4)
