import json
from pathlib import Path

import pytest
import torch

from pipeline.errors import ContractError, PipelineError
from pipeline.learn.checkpoint import Checkpoint, check_contract, load_checkpoint, save_checkpoint
from pipeline.learn.models import build_model
from pipeline.learn.streaming import Standardisation
from pipeline.learn.tasks import Classification
from pipeline.settings.training import TrainConfig
from tests.support.features import make_contract


def make_checkpoint(network: str = "recurrent") -> Checkpoint:
    config = TrainConfig(cell="gru", bidirectional=True, hidden_size=5, pooling="avg")
    model = build_model(
        network,
        config,
        map_shapes=[(3, 2, 2)],
        num_outputs=2,
        standardisations=[Standardisation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.5, 2.5]))],
    )
    task = Classification(("down", "up"))
    return Checkpoint(
        network, model.eval(), task, config, (make_contract(),), ((3, 2, 2),), {"accuracy": 0.75}
    )


@pytest.mark.parametrize("network", ["recurrent", "baseline"])
def test_a_loaded_checkpoint_gives_the_same_outputs_and_knows_the_same(tmp_path, network):
    saved = make_checkpoint(network)
    save_checkpoint(tmp_path / "model", saved)
    loaded = load_checkpoint(tmp_path / "model")
    maps, lengths = torch.randn(4, 6, 3, 2, 2), torch.tensor([6, 1, 3, 2])
    assert torch.equal(loaded.model(maps, lengths), saved.model(maps, lengths))
    for field in ("network", "task", "config", "contracts", "map_shapes", "metrics"):
        assert getattr(loaded, field) == getattr(saved, field)


def test_a_checkpoint_is_readable_without_this_code(tmp_path):
    from safetensors.numpy import load_file

    save_checkpoint(tmp_path, make_checkpoint())
    description = json.loads((tmp_path / "checkpoint.json").read_text())
    assert description["task"] == {
        "classes": ["down", "up"],
        "class_weights": None,
        "focal_gamma": 0.0,
    }
    assert description["contracts"][0]["arch"] == "resnet18"
    assert description["config"]["cell"] == "gru"
    assert load_file(tmp_path / "model.safetensors")["steps.standardise.mean"].ravel().tolist() == [1, 2, 3]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, make_checkpoint())
    for file in ("model.safetensors", "checkpoint.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_missing_checkpoint_says_so(tmp_path):
    with pytest.raises(PipelineError, match=r"No checkpoint in .*gone: .*checkpoint.json is missing\.$"):
        load_checkpoint(tmp_path / "gone")


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    save_checkpoint(tmp_path, make_checkpoint())
    description = json.loads((tmp_path / "checkpoint.json").read_text())
    description["config"]["attention_heads"] = 4
    (tmp_path / "checkpoint.json").write_text(json.dumps(description))
    with pytest.raises(PipelineError, match=r"another version of framecache: (?s:.*)attention_heads"):
        load_checkpoint(tmp_path)


def test_features_made_otherwise_are_refused_by_field():
    path = Path("features/layer4")
    check_contract(make_contract(), make_contract(), path=path)
    other = make_contract(sampling={"every": 2}, preprocessing={"resize": 64, "crop": 32})
    with pytest.raises(ContractError) as error:
        check_contract(make_contract(), other, path=path)
    assert "features/layer4 does not have" in str(error.value)
    assert "sampling is {'every': 2}, the model needs 'all'" in str(error.value)
    assert "preprocessing.resize is 64, the model needs 32" in str(error.value)
