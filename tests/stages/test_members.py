"""The members of a sweep: their settings, their names, and what is wrong with them, all at once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.manifest import read_manifest, write_manifest
from pipeline.settings.sweep import SweepConfig
from stages.members import SweepMember, sweep_members
from stages.params import params_of
from stages.yaml_files import checked, read_mapping
from tests.stages.test_train import REPOSITORY, make_workspace

FILE = Path("mine.yaml")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_workspace(tmp_path / "workspace"))
    return tmp_path / "workspace"


def members(**sweep: Any) -> list[SweepMember]:
    return sweep_members(SweepConfig.model_validate(sweep), path=FILE)


def problems(**sweep: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        members(**sweep)
    return str(error.value).splitlines()


def test_a_member_is_params_yaml_with_its_values(workspace: Path) -> None:
    first, second = members(grid={"train.hidden_size": [8], "train.learning_rate": [0.01, "1e-3"]})
    base = yaml.safe_load((workspace / "params.yaml").read_text())
    assert first.document == {**base, "train": {**base["train"], "hidden_size": 8, "learning_rate": 0.01}}
    assert (first.config.hidden_size, first.config.learning_rate) == (8, 0.01)
    assert second.values == {"train.hidden_size": 8, "train.learning_rate": 0.001}  # a number, as in YAML
    assert second.name == "hidden_size=8,learning_rate=0.001"
    assert params_of(second.document, path=FILE) == second.params


@pytest.mark.usefixtures("workspace")
def test_a_key_that_does_nothing_is_left_out_and_equal_members_are_one() -> None:
    found = members(grid={"train.cell": ["lstm", "transformer"], "train.num_heads": [2, 4]})
    assert [member.name for member in found] == [
        "cell=lstm",
        "cell=transformer,num_heads=2",
        "cell=transformer,num_heads=4",
    ]
    assert "projection" in found[0].document["train"]
    assert "projection" not in found[1].document["train"]  # of params.yaml; a transformer has none


@pytest.mark.usefixtures("workspace")
def test_members_that_differ_in_the_seed_alone_have_one_setting() -> None:
    found = members(grid={"train.hidden_size": [4, 8], "train.seed": [0, 1]})
    assert [member.setting for member in found] == [
        found[0].setting,
        found[0].setting,
        found[2].setting,
        found[2].setting,
    ]
    assert found[0].setting != found[2].setting


def test_names_differ_and_can_be_those_of_experiments(workspace: Path) -> None:
    clips = read_manifest("manifests/toy.csv").clips()
    for name in ("a b", "a~b"):
        write_manifest(workspace / f"manifests/{name}.csv", clips)
    found = members(grid={"corpus.manifest": ["manifests/a b.csv", "manifests/a~b.csv"]})
    assert found[0].name == "manifest=manifests-a-b.csv"
    assert found[1].name.startswith("manifest=manifests-a-b.csv,")
    assert found[1].manifest == Path("manifests/a~b.csv")


@pytest.mark.usefixtures("workspace")
def test_all_problems_are_named_at_once() -> None:
    assert problems(
        list=[{"train.cell": "gr"}, {"train.hidden_size": 0}, {"train.task": "captioning"}],
        grid={"train.seed": [0, 1]},
    ) == [
        "mine.yaml: train.cell: 'gr' is not allowed. Input should be 'lstm', 'gru', 'rnn', 'transformer' or"
        " 'none'.",
        "mine.yaml: train.hidden_size: 0 is not allowed. Input should be greater than 0.",
        "params.yaml: train.task: 'captioning' needs the column 'caption' of the manifest, and 21 clips have"
        " nothing there: clip00, clip01, clip02, clip03, clip04, clip05, clip06, clip07, clip08, clip09 and"
        " 11 more.",
    ]


def test_what_no_sweep_can_do_is_refused(workspace: Path) -> None:
    clips = read_manifest("manifests/toy.csv").clips()
    write_manifest(workspace / "manifests/other.csv", [clip for clip in clips if clip.clip_id != "clip13"])
    assert problems(grid={"train.momentum": [0.8, 0.9]}) == [
        "mine.yaml: train.momentum does nothing in any member: it needs optimizer sgd."
    ]
    assert problems(
        grid={
            "train.monitor": ["accuracy", "loss"],
            "train.tap": ["layer1", "layer4"],
            "corpus.manifest": ["manifests/toy.csv", "manifests/other.csv"],
        },
        halving={"rungs": [2, 4]},
    ) == [
        "mine.yaml: no metric compares members of different tasks or monitors: classification with accuracy,"
        " classification with loss.",
        "mine.yaml: manifests/toy.csv and manifests/other.csv have different val clips, so their members"
        " can't be compared.",
        "features/layer1 is missing. Run `dvc repro extract` to make it, or `dvc pull`.",
        "mine.yaml: halving.rungs: 4 is not below train.epochs, 4.",
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"halving": {"rungs": [1]}},
            "halving compares val losses, whose scale depends on train.class_weights, train.focal_gamma."
            " Leave halving out.",
        ),
        (
            {"list": [{"train.monitor": "loss"}]},
            "train.monitor loss has a scale that depends on train.class_weights, train.focal_gamma. Choose"
            " another monitor.",
        ),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_losses_of_different_scales_choose_no_member(options: dict[str, Any], reason: str) -> None:
    grid = {"train.class_weights": [None, "balanced"], "train.focal_gamma": [0, 2]}
    assert problems(grid=grid, **options) == [f"mine.yaml: {reason}"]
    assert len(members(grid={"train.hidden_size": [4, 6]}, **options)) == 2
    assert len(members(grid=grid)) == 4


def test_a_wrong_params_yaml_is_named_first(workspace: Path) -> None:
    base = yaml.safe_load((workspace / "params.yaml").read_text())
    (workspace / "params.yaml").write_text(yaml.safe_dump({**base, "train": {"cell": "gr"}}))
    assert problems(grid={"train.cell": ["gru"]})[0].startswith("params.yaml: train.cell: 'gr'")


def test_the_example_fits_the_params_yaml_as_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "manifests", tmp_path / "manifests")
    (tmp_path / "features/layer3").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    path = REPOSITORY / "sweeps/example.yaml"
    found = sweep_members(checked(read_mapping(path), SweepConfig, path=path), path=path)
    assert len(found) == 2 * 8 * 2
    assert len({member.setting for member in found}) == 16
