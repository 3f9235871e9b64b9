"""Training and evaluation on several views of each clip."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from pydantic import ValidationError

from pipeline.contract import FrameView
from pipeline.errors import ConfigError, ContractError, MissingTapError, StoreError
from pipeline.learn.answering import mean_predictions
from pipeline.learn.checkpoint import load_checkpoint
from pipeline.learn.comparison import evaluate
from pipeline.learn.run import train, train_many
from pipeline.learn.streaming import Loader, keep_all_resident, open_views
from pipeline.learn.tasks import Classification, Multilabel, Predictions, Regression
from pipeline.manifest import write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig, TrainConfig
from pipeline.store import Journal, publish
from tests.support.features import (
    clip_maps,
    fill_maps,
    make_contract,
    make_layout,
    tap_view,
)
from tests.support.toy import make_clip, make_features

CENTER, FLIP, CORNER = FrameView(), FrameView(flip=True), FrameView(corner="top_left")
SPLITS = ("train", "train", "train", "val", "test")
CONFIG = TrainConfig(projection=3, hidden_size=4, epochs=3, batch_size=2)
LENGTHS = {f"c{number}": 3 + number % 4 for number in range(10)}


def maps_of(clip_id: str, view: FrameView) -> np.ndarray:
    return clip_maps(f"{clip_id} {view.name}", LENGTHS[clip_id])


def publish_views(folder: Path, views: Mapping[FrameView, Sequence[str]], **changes: object) -> Path:
    """Features of some clips of each view, with values of their own; the folder of the centre view."""
    journal, found = Journal(folder / "journal"), []
    for view, clip_ids in views.items():
        contract = make_contract(view=view, **(changes if view != CENTER else {}))
        layout = make_layout(contract)
        fill_maps(journal, contract, layout, {name: maps_of(name, view) for name in clip_ids})
        found.append(tap_view(journal, contract, layout, clip_ids))
    publish(journal, found, folder / "features", files={})
    return folder / "features/layer4"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of ten clips, and features of three views."""
    folder = tmp_path_factory.mktemp("inputs")
    clips = [
        make_clip(name, split=SPLITS[number % 5], label=("left", "right")[number // 5])
        for number, name in enumerate(LENGTHS)
    ]
    write_manifest(folder / "manifest.csv", clips)
    publish_views(folder, {view: list(LENGTHS) for view in (CENTER, FLIP, CORNER)})
    return folder


def seen_views(loader: Loader, epoch: int, views: Sequence[FrameView]) -> dict[str, str]:
    """The name of the view in which an epoch shows each clip, all of its samples alike."""
    found: dict[str, str] = {}
    for batch in loader.epoch(epoch):
        rows = zip(batch.clips, batch.first_frames, batch.lengths.tolist(), batch.maps.numpy(), strict=True)
        for clip, first, length, maps in rows:
            (name,) = (
                view.name
                for view in views
                if np.array_equal(maps[:length], maps_of(clip.clip_id, view)[first : first + length])
            )
            assert found.setdefault(clip.clip_id, name) == name
            assert not maps[length:].any()
    return found


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("window", [None, 2])
def test_an_epoch_shows_each_clip_in_one_view_that_seed_epoch_and_clip_choose(
    inputs: Path, resident: bool, window: int | None
) -> None:
    views = (CENTER, FLIP, CORNER)
    clips = [make_clip(name) for name in LENGTHS]
    with open_views(inputs / "features/layer4", views) as opened:
        features = [opened[view] for view in views]
        if resident:
            features = keep_all_resident([(each, clips) for each in features], limit_bytes=1 << 30)
        for num_threads in (1, 3):
            loader = Loader(features[0], clips, 4, num_threads, shuffle_seed=7, window=window, views=features)
            for epoch in range(3):
                expected = {
                    name: views[xxhash.xxh3_64_intdigest(f"7/{epoch}/view/{name}".encode()) % 3].name
                    for name in LENGTHS
                }
                assert seen_views(loader, epoch, views) == expected


def test_a_clip_that_lacks_a_view_is_shown_in_the_others(tmp_path: Path) -> None:
    features = publish_views(tmp_path, {CENTER: ["c0", "c1"], FLIP: ["c0"]})
    clips = [make_clip(name) for name in ("c0", "c1")]
    with open_views(features, [FLIP]) as views:
        loader = Loader(views[CENTER], clips, 2, 1, shuffle_seed=0, views=[views[CENTER], views[FLIP]])
        seen = [seen_views(loader, epoch, (CENTER, FLIP)) for epoch in range(8)]
    assert {each["c0"] for each in seen} == {"center", "flip"}
    assert {each["c1"] for each in seen} == {"center"}


def test_views_with_other_numbers_of_frames_are_refused() -> None:
    maps = {"c0": clip_maps("c0", 3)}
    longer = make_features({"c0": clip_maps("c0", 4)})
    loader = Loader(
        make_features(maps), [make_clip("c0")], 1, 1, shuffle_seed=0, views=[make_features(maps), longer]
    )
    with pytest.raises(StoreError, match="Clip 'c0' has other numbers of frames"):
        next(loader.epoch())


def trained_weights(
    folder: Path, members: Mapping[str, TrainConfig], path: Path, **machine: object
) -> dict[str, bytes]:
    """The weights of each member's best epoch."""
    outcomes = train_many(
        folder / "features/layer4",
        [
            MemberConfig(name, config, folder / "manifest.csv", checkpoint=path / name)
            for name, config in members.items()
        ],
        machine=Machine(**machine),
        state=path / "state",
    )
    assert all(outcome.is_done for outcome in outcomes.values())
    return {name: (path / name / "model.safetensors").read_bytes() for name in members}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_members_of_different_views_equal_each_alone_resident_or_streamed(
    inputs: Path, tmp_path: Path, device: str
) -> None:
    members = {
        "center": CONFIG,
        "both": CONFIG.model_copy(update={"views": (CENTER, FLIP)}),
        "corner": CONFIG.model_copy(update={"views": (CORNER,)}),
    }
    together = trained_weights(inputs, members, tmp_path / "together", device=device)
    assert len(set(together.values())) == 3
    for resident_mb in (0, 1000):  # of a GPU's run, then in pinned memory
        machine = {"device": device, "resident_mb": resident_mb, "resident_gpu_mb": 0, "num_readers": 3}
        assert trained_weights(inputs, members, tmp_path / f"{resident_mb}", **machine) == together
    for name, config in members.items():
        alone = trained_weights(inputs, {name: config}, tmp_path / "alone", device=device)
        assert alone == {name: together[name]}


def test_views_change_neither_standardisation_nor_what_is_validated(inputs: Path, tmp_path: Path) -> None:
    members = {"center": CONFIG, "flip": CONFIG.model_copy(update={"views": (FLIP,)})}
    trained_weights(inputs, members, tmp_path)
    one, two = (load_checkpoint(tmp_path / name).model for name in members)
    assert torch.equal(one.steps.standardise.mean, two.steps.standardise.mean)


def predictions_of(clip_ids: str, outputs: Sequence[Sequence[float]]) -> Predictions:
    clips = tuple(make_clip(name, label="a") for name in clip_ids)
    empty = (torch.zeros(()),) * len(clips)
    return Predictions(clips, tuple(map(torch.tensor, outputs)), empty, empty)


@pytest.mark.parametrize(
    "task", [Classification(("a", "b", "c")), Multilabel(("a", "b", "c")), Regression((1.0,) * 3, (2.0,) * 3)]
)
def test_the_answer_about_a_clip_is_the_mean_of_its_probabilities_or_values(task) -> None:
    center = predictions_of("xy", [[90.0, -1.0, 2.0], [0.5, 0.1, -3.0]])
    flip = predictions_of("x", [[-90.0, 0.3, 1.0]])
    mean = mean_predictions([center, flip], task=task)
    both = torch.stack([center.outputs[0], flip.outputs[0]]).double()
    torch.testing.assert_close(task.interpret(mean.outputs[0].double()), task.interpret(both).mean(0))
    torch.testing.assert_close(task.interpret(mean.outputs[1]), task.interpret(center.outputs[1]))
    assert all(output.isfinite().all() for output in mean.outputs)
    assert mean_predictions([center], task=task) is center


def test_evaluation_takes_the_mean_over_the_views_and_counts_all_batches(
    inputs: Path, tmp_path: Path
) -> None:
    trained = train(
        inputs / "features/layer4",
        inputs / "manifest.csv",
        config=CONFIG.model_copy(update={"views": (CENTER, FLIP)}),
        checkpoints=tmp_path / "checkpoints",
        state=tmp_path / "state",
    )
    told = []

    def answers(*views: FrameView, **options: int) -> torch.Tensor:
        evaluation = evaluate(
            trained.checkpoints,
            inputs / "features/layer4",
            inputs / "manifest.csv",
            config=EvaluateConfig(num_resamples=5, views=views, **options),
            on_batch=lambda *progress: told.append(progress),
        )
        return torch.stack(evaluation.answers.outputs).softmax(dim=1)

    expected = (answers(CENTER) + answers(FLIP)) / 2
    told.clear()
    torch.testing.assert_close(answers(CENTER, FLIP), expected)
    assert told == [(name, done, 2) for name in ("recurrent", "shuffled", "baseline") for done in (1, 2)]
    torch.testing.assert_close(answers(CENTER, FLIP, chunk_frames=2), expected)


def test_what_views_cannot_be_read_together_is_refused(inputs: Path, tmp_path: Path) -> None:
    features = inputs / "features/layer4"
    missing = FrameView(scale=0.5)
    with pytest.raises(MissingTapError, match=r"layer4@scale0\.5"), open_views(features, [missing]):
        pass
    with (
        pytest.raises(ConfigError, match="has the view 'flip'"),
        open_views(features.with_name("layer4@flip"), []),
    ):
        pass
    others = publish_views(tmp_path, {CENTER: ["c0"], FLIP: ["c0"]}, weights_sha256="1" * 64)
    with pytest.raises(ContractError, match="they differ in weights_sha256"), open_views(others, [FLIP]):
        pass
    with pytest.raises(ValidationError, match="'flip' is there several times"):
        TrainConfig(views=("flip", "flip"))
    captions = TrainConfig(task="captioning")
    assert (
        "it needs task classification" in EvaluateConfig(views=("center", "flip")).unused(captions)["views"]
    )
