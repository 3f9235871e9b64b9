"""Features that an earlier version of the code has made stay valid, bit for bit and under their old keys.

tests/data/revision3 has a journal with one picture's `avgpool`, made when the networks were ResNets and VGGs.
"""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.backbone.weights import save_weights
from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.extraction import make_plan, make_targets, publish_view
from pipeline.manifest import Clip
from pipeline.store import Journal, open_view
from tests.support.extraction import make_backbone, random_weights, settings_of, sources_of

MADE = Path(__file__).parents[1] / "data" / "revision3"


def test_a_journal_made_before_has_all_features_and_computes_none_again(tmp_path: Path) -> None:
    shutil.copytree(MADE / "journal", tmp_path / "journal")
    journal = Journal(tmp_path / "journal")
    weights = replace(random_weights(), sha256="7" * 64)
    fields = {
        "taps": ["avgpool"],
        "preprocessing": {"resize": 32, "crop": 32},
        "store": {"format": "hdf5", "rows_per_chunk": 1, "shard_mb": 1},
    }
    config, _ = settings_of(fields)
    backbone = make_backbone(weights, config)
    targets = make_targets(config, weights, backbone)
    clips = [Clip(clip_id="slope", sources=("slope.png",), split="train")]
    sources = sources_of(clips, root=MADE, digests=journal.digest_cache())
    todo = make_plan(clips, sources=sources, targets=targets, journal=journal)
    assert not todo.lacking
    publish_view(todo.keys, targets=targets, journal=journal, path=tmp_path / "features")
    with open_view(tmp_path / "features" / "avgpool") as view:
        maps = view.read("slope")
    assert maps.shape == (1, 512, 1, 1)
    np.testing.assert_allclose(maps[0, :5, 0, 0], [0, 1.0205, 0.005863, 0.0997, 0.4863], rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "digest", "forward"),
    [
        (
            {
                "sampling": Sampling(),
                "preprocessing": Preprocessing(),
                "mean": (0.485, 0.456, 0.406),
                "std": (0.229, 0.224, 0.225),
                "arch": "resnet50",
                "weights_sha256": "0" * 64,
                "tap": "layer4",
            },
            "d6d21056a138b97fccd63a9879192467729b61f6ca9dbf6cc86fd7e90456ebe0",
            "2c6f17dfe865975b0f6b593f66f742991629857ace6042a77b5102694f388980",
        ),
        (
            {
                "sampling": Sampling(count=3),
                "preprocessing": Preprocessing(resize=None, crop=(64, 32)),
                "mean": (0, 0, 0),
                "std": (1, 1, 1),
                "arch": "vgg11",
                "weights_sha256": "1" * 64,
                "tap": "block2",
                "pooling": "avg",
                "dtype": "float32",
            },
            "ed6e9119f1b1db663bd8f9395d0c79bc399de6ae92c05566e3f2dc2fc0917cb4",
            "bada37d2d589b22cadf08d2d1624c66445d163f06ab88eea6413a671149fc90d",
        ),
    ],
)
def test_digests_of_contracts_stay(fields: dict[str, object], digest: str, forward: str) -> None:
    contract = FeatureContract.model_validate(fields)
    assert (contract.digest(), contract.forward_digest()) == (digest, forward)


def test_bytes_of_weights_files_stay(tmp_path: Path) -> None:
    weights = random_weights()
    state = {"conv1.weight": weights.state["conv1.weight"].new_tensor([[1.5, -2.0]])}
    save_weights(replace(weights, state=state), path=tmp_path / "w.safetensors")
    found = hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert found == "f11e9f332e279a7488ac80dc17d67424ebe340a605d3c93d4c6c2300a8a72114"
