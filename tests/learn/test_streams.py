"""Streams: features of several taps, read side by side; against models of one tap and loops by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.contract import CENTER, FrameView
from pipeline.errors import ConfigError, ContractError, MissingFeaturesError
from pipeline.learn.checkpoint import load_checkpoint
from pipeline.learn.comparison import answer_split, evaluate
from pipeline.learn.models import LateFusion, build_late_fusion, build_model
from pipeline.learn.models.chunks import answer_in_chunks
from pipeline.learn.models.steps import TapSteps
from pipeline.learn.run import train, train_many
from pipeline.learn.streaming import FusedFeatures, Standardisation, channel_statistics, open_views
from pipeline.manifest import write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.model import ModelConfig
from pipeline.settings.training import MemberConfig, TrainConfig
from pipeline.store import Journal, publish
from tests.support.features import clip_maps, fill_maps, make_contract, make_layout, tap_view
from tests.support.toy import make_clip, make_features

LENGTHS = {f"c{number}": 3 + number % 4 for number in range(10)}
SPLITS = ("train", "train", "train", "val", "test")
SMALL = {"projection": 3, "hidden_size": 4, "epochs": 2, "batch_size": 2}


def features_at(clips: dict[str, tuple[list[float], np.ndarray]]) -> object:
    """Features in memory of frames at these times."""
    features = make_features({name: maps for name, (_, maps) in clips.items()})
    times = np.concatenate([np.array(seconds) for seconds, _ in clips.values()])
    object.__setattr__(features, "row_frame_seconds", times)
    return features


def test_frames_of_other_rates_are_those_nearest_in_time() -> None:
    rng = np.random.default_rng(0)
    main, dense, sparse = (
        rng.standard_normal((length, *shape)).astype(dtype)
        for length, shape, dtype in (
            (4, (2, 1, 2), "float16"),
            (9, (3, 1, 1), "float32"),
            (2, (1, 2, 1), "float16"),
        )
    )
    fused = FusedFeatures(
        [
            features_at({"a": ([0.0, 1.0, 2.0, 3.0], main), "only here": ([0.0], main[:1])}),
            features_at({"a": ([0.4 * n for n in range(9)], dense)}),
            features_at({"a": ([0.5, 3.5], sparse)}),
        ]
    )
    assert (fused.map_shape, fused.dtype) == ((9, 1, 1), np.float32)
    assert "a" in fused
    assert "only here" not in fused
    rows = [  # 1.0 is as near to 0.8 as to 1.2, and 2.0 to 0.5 as to 3.5: the earlier one
        np.concatenate([main[frame].ravel(), dense[n].ravel(), sparse[m].ravel()])
        for frame, n, m in ((0, 0, 0), (1, 2, 0), (2, 5, 0), (3, 7, 1))
    ]
    out = np.empty((4, 9, 1, 1), np.float32)
    fused.read_into("a", out)
    np.testing.assert_array_equal(out[..., 0, 0], rows)
    fused.read_into("a", out[:2], first_frame=2)
    np.testing.assert_array_equal(out[:2, :, 0, 0], rows[2:])
    np.testing.assert_array_equal(fused.frame_seconds("a"), [0, 1, 2, 3])


SHAPES = [(3, 2, 2), (2, 1, 4)]
STANDARDISATIONS = [
    Standardisation(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 2.0, 3.0])),
    Standardisation(torch.tensor([-0.4, 0.5]), torch.tensor([0.7, 0.9])),
]
LENGTH = torch.tensor([5, 3])


def stream_maps() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 5, *shape) for shape in SHAPES]


def fuse(maps: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten(2) for each in maps], dim=2)[..., None, None]


@pytest.mark.parametrize("name", ["recurrent", "baseline"])
def test_early_fusion_is_a_model_that_reads_the_joined_steps(name: str) -> None:
    config = ModelConfig(hidden_size=4, streams=[{"tap": "other", "pooling": "max"}])
    model = build_model(
        name, config, map_shapes=SHAPES, num_outputs=3, standardisations=STANDARDISATIONS, seed=5
    ).eval()
    maps = stream_maps()
    first, second = (
        (each - of.mean[:, None, None]) / of.std[:, None, None]
        for each, of in zip([maps[0], maps[1].amax((3, 4), keepdim=True)], STANDARDISATIONS, strict=True)
    )
    joined = torch.cat([first.flatten(2), second.flatten(2)], dim=2)[..., None, None]
    alone = build_model(name, config.of_stream(None), map_shapes=[(14, 1, 1)], num_outputs=3, seed=5).eval()
    torch.testing.assert_close(model(fuse(maps), LENGTH), alone(joined, LENGTH))


def test_late_fusion_is_the_mean_of_a_model_a_stream() -> None:
    config = ModelConfig(
        hidden_size=4, streams=[{"tap": "other", "scan": "columns", "projection": 5}], fusion="late"
    )
    fusion = build_late_fusion(
        config, map_shapes=SHAPES, num_outputs=3, standardisations=STANDARDISATIONS, seed=5
    ).eval()
    maps, outputs = stream_maps(), []
    for number, own in enumerate(
        (ModelConfig(hidden_size=4), ModelConfig(hidden_size=4, scan="columns", projection=5))
    ):
        alone = build_model(
            "recurrent",
            own,
            map_shapes=[SHAPES[number]],
            num_outputs=3,
            standardisations=[STANDARDISATIONS[number]],
        ).eval()
        alone.load_state_dict(fusion.models[number].state_dict())
        outputs.append(alone(maps[number], LENGTH))
    torch.testing.assert_close(fusion(fuse(maps), LENGTH), (outputs[0] + outputs[1]) / 2)
    first = build_model("recurrent", ModelConfig(hidden_size=4), map_shapes=SHAPES[:1], num_outputs=3, seed=5)
    assert torch.equal(fusion.models[0].head.weight, first.head.weight)

    whole = fusion(fuse(maps)[:1])[0]
    read = lambda first, count: fuse(maps)[:1, first : first + count]  # noqa: E731
    torch.testing.assert_close(answer_in_chunks(fusion, read, num_frames=5, chunk_frames=2), whole)


def test_streams_with_other_numbers_of_steps_are_joined_for_the_baseline_alone() -> None:
    config = ModelConfig(streams=[{"tap": "other", "scan": "columns"}])
    with pytest.raises(ConfigError, match="A frame has 1, 4 steps in the streams"):
        build_model("recurrent", config, map_shapes=SHAPES, num_outputs=3)
    baseline = build_model("baseline", config, map_shapes=SHAPES, num_outputs=3).eval()
    maps = stream_maps()
    means = torch.cat([maps[0].flatten(2), maps[1].flatten(2, 3).mean(3)], dim=2).mean(1)
    torch.testing.assert_close(baseline(fuse(maps)), baseline.head(means))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tap": "layer3", "streams": ["layer4", "layer3"]}, "one comes twice"),
        ({"streams": ["layer3"], "tail": "layer4", "tap": "layer2"}, "trained behind one tap"),
        ({"streams": ["layer3"], "fusion": "late", "task": "captioning"}, "no outputs to average"),
        ({"streams": ["layer3"], "fusion": "late", "augment": {"noise": 1.0}}, "augment needs fusion early"),
        ({"streams": [{"tap": "layer3", "projection": 3}]}, "needs fusion late"),
        ({"streams": [{"tap": "layer3", "scan_size": 3}]}, "scan_size 3 does nothing with scan 'frames'"),
        ({"fusion": "late"}, "fusion 'late' does nothing: it needs streams"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(values)


def test_a_stream_is_written_as_it_is_given() -> None:
    given = ["layer3", {"tap": "layer4", "scan": "rows"}]
    config = TrainConfig.model_validate({"tap": "layer2", "streams": given, "fusion": "late"})
    written = config.live("recurrent")["streams"]
    assert written[0] == "layer3"
    assert (written[1]["tap"], written[1]["scan"]) == ("layer4", "rows")
    assert TrainConfig.model_validate(config.live("recurrent")) == config


def publish_taps(folder: Path, taps: dict[str, list[str]], **changes: object) -> None:
    """Features of some clips of each tap."""
    journal, found = Journal(folder.parent / "journal"), []
    for tap, clip_ids in taps.items():
        contract = make_contract(tap=tap, **changes)
        layout = make_layout(contract)
        maps = {name: clip_maps(f"{name} {tap} {folder.name}", LENGTHS[name]) for name in clip_ids}
        fill_maps(journal, contract, layout, maps)
        found.append(tap_view(journal, contract, layout, clip_ids))
    publish(journal, found, folder, files={})


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a manifest, and features of two taps and of another network, which lacks a clip."""
    clips = [
        make_clip(name, split=SPLITS[number % 5], label=("left", "right")[number // 5])
        for number, name in enumerate(LENGTHS)
    ]
    write_manifest(tmp_path / "manifest.csv", clips)
    publish_taps(tmp_path / "features", {"layer3": list(LENGTHS), "layer4": list(LENGTHS)})
    publish_taps(tmp_path / "features-net", {"layer1": list(LENGTHS)[1:]}, weights_sha256="1" * 64)
    return tmp_path


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_a_model_of_streams_trains_the_same_in_memory_and_streamed_and_is_evaluated(
    inputs: Path, fusion: str
) -> None:
    config = TrainConfig.model_validate(
        {**SMALL, "streams": ["layer4", {"tap": "net/layer1", "pooling": "avg"}], "fusion": fusion}
    )
    features, manifest = inputs / "features/layer3", inputs / "manifest.csv"
    for name, machine in {"kept": Machine(), "streamed": Machine(resident_mb=0, num_readers=3)}.items():
        train(
            features,
            manifest,
            config=config,
            machine=machine,
            checkpoints=inputs / name,
            state=inputs / "state",
        )
    files = [inputs / name / "recurrent/model.safetensors" for name in ("kept", "streamed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    trained = load_checkpoint(inputs / "kept/recurrent")
    assert trained.streams == ("layer4", "net/layer1")
    assert [each.tap for each in trained.contracts] == ["layer3", "layer4", "layer1"]

    with open_views(features, (), trained.streams) as views:
        fused = views[CENTER]
        assert "c0" not in fused
        statistics = [
            channel_statistics(
                stream, [make_clip(name) for name in ("c1", "c2", "c5", "c6", "c7")], pooling=pooling
            )
            for stream, pooling in zip(fused.streams, ("flatten", "flatten", "avg"), strict=True)
        ]
        parts = (
            [model.steps for model in trained.model.models]
            if isinstance(trained.model, LateFusion)
            else trained.model.steps.parts
        )
        for part, expected in zip(parts, statistics, strict=True):
            assert isinstance(part, TapSteps)
            assert torch.equal(part.standardise.mean.flatten(), expected.mean)
        maps = np.empty((fused.num_frames("c4"), *fused.map_shape), fused.dtype)
        fused.read_into("c4", maps)
    assert evaluate(inputs / "kept", features, manifest).scores.keys() == {
        "recurrent",
        "shuffled",
        "baseline",
    }
    whole = answer_split(trained, features, manifest, config=EvaluateConfig(split="test"))
    assert [clip.clip_id for clip in whole.clips] == ["c4", "c9"]
    with torch.no_grad():
        expected = trained.model(torch.from_numpy(maps)[None])[0]
    torch.testing.assert_close(whole.outputs[0], expected, rtol=1e-4, atol=1e-5)
    chunks = answer_split(trained, features, manifest, config=EvaluateConfig(split="test", chunk_frames=2))
    for one, other in zip(whole.outputs, chunks.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_features_and_streams_that_do_not_fit_are_named(inputs: Path) -> None:
    config = TrainConfig.model_validate({**SMALL, "streams": ["layer4"]})
    features, manifest = inputs / "features/layer3", inputs / "manifest.csv"
    places = {"checkpoints": inputs / "checkpoints", "state": inputs / "state"}
    with pytest.raises(MissingFeaturesError, match="layer9"):
        train(
            features, manifest, config=TrainConfig.model_validate({**SMALL, "streams": ["layer9"]}), **places
        )
    with pytest.raises(ConfigError, match="read the same streams"):
        train_many(
            features, [MemberConfig("a", config, manifest), MemberConfig("b", TrainConfig(**SMALL), manifest)]
        )
    with pytest.raises(MissingFeaturesError, match="layer3@flip"):
        train(
            features,
            manifest,
            config=config.model_copy(update={"views": (CENTER, FrameView(flip=True))}),
            **places,
        )
    train(features, manifest, config=config, **places)
    publish_taps(
        inputs / "features", {"layer3": list(LENGTHS), "layer4": list(LENGTHS)}, weights_sha256="2" * 64
    )
    with pytest.raises(ContractError, match="weights_sha256"):
        evaluate(inputs / "checkpoints", features, manifest)
