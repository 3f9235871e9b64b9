"""`stages.store card`: what a README.md beside dumped features says."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import stages.store
from pipeline.contract import FeatureContract
from pipeline.manifest import Clip, write_manifest
from pipeline.settings.extract import ExtractConfig
from pipeline.store import open_view
from pipeline.store.upkeep.card import Facts, make_card
from pipeline.store.upkeep.foreign import foreign_clips
from pipeline.store.upkeep.importing import Times, import_clips
from tests.support.features import make_contract, make_view
from tests.support.in_process import run_main


def store(folder: Path, *arguments: str, succeeds: bool = True) -> str:
    status, stdout, stderr = run_main(stages.store.main, folder, *arguments)
    assert (status == 0) == succeeds, stdout + stderr
    return stdout + stderr


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    """A folder with the folder `out` of dumped features and a manifest."""
    make_view(tmp_path, {"a": 5, "b": 12, "c": 1})
    clips = [
        Clip(name, (f"{name}.mp4",), split, label="x|y" if name == "a" else "x")
        for name, split in (("a", "train"), ("b", "val"), ("c", "test"), ("more", "test"))
    ]
    write_manifest(tmp_path / "all.csv", clips)
    store(tmp_path, "dump", "features/layer4", "--out", "out", "--manifest", "all.csv")
    return tmp_path


def test_a_card_says_what_the_features_are_and_how_to_make_them_again(dumped: Path) -> None:
    options = ("--title", "My maps", "--manifest", "all.csv", "--license", "cc-by-4.0")
    store(dumped, "card", "features/layer4", "--beside", "out", *options)
    _, front, text = (dumped / "out/README.md").read_text().split("---\n", maxsplit=2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    for line in (
        "# My maps",
        "| clips | 3 |",
        "| frames | 18, 1 to 12 a clip |",
        "| of each frame | 4 x 3 x 2 (channels x height x width), float16 |",
        "| clips in train | 1 |",
        "| clips in test | 1 |",
        "| clips with label | 3 |",
        "| `arch` | `resnet18` |",
        "| `preprocessing.crop` | `32` |",
        "| the videos or images | unknown |",
    ):
        assert f"\n{line}\n" in text
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["extract"]["taps"] == ["layer4"]
    assert settings["extract"]["preprocessing"]["resize"] == 32
    assert "exists" in store(dumped, "card", "features/layer4", "--beside", "out", succeeds=False)


def test_a_card_names_all_settings_that_make_the_features_again(dumped: Path) -> None:
    contract = make_contract(
        view="flip", windows={"frames": 4, "stride": 2}, layout="1+4x4", pooling="cls", code="0" * 64
    )
    with open_view(dumped / "features/layer4") as view:
        view.contract = contract
        weights = {"arch": "nets:build", "code": "nets.py", "arguments": {"width": 4}, "source": "built"}
        text = make_card(view, Facts("maps", weights=weights))
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings["weights"] == weights
    extract = ExtractConfig.model_validate(settings["extract"])
    assert [view.name for view in extract.views] == ["center", "flip"]
    assert extract.layouts == {contract.tap: "1+4x4"}
    for name in ExtractConfig.model_fields.keys() & FeatureContract.model_fields.keys():
        assert getattr(extract, name) == getattr(contract, name), name


def test_a_card_of_imported_features_says_what_is_known_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 5), np.float32))
    origin = {"made_by": "a | b", "known": {"network": "I3D"}}
    import_clips(
        foreign_clips(tmp_path), tmp_path / "in", name="i3d", origin=origin, times=Times(25), axes="TD"
    )
    store(tmp_path, "card", "in/i3d", "--beside", "a.npy")
    text = (tmp_path / "README.md").read_text()
    assert "Another program made these features." in text
    assert r"| `made_by` | `a \| b` |" in text
    assert "| `known.network` | `I3D` |" in text
    assert "How to make it again" not in text


def test_where_nothing_was_dumped_a_card_is_refused(dumped: Path) -> None:
    assert "there is no maps" in store(dumped, "card", "features/layer4", "--beside", "maps", succeeds=False)
