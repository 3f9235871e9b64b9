"""The settings of training: what is refused, and what is left out for doing nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.training import TrainConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"momentum": 0.5},
            "momentum 0.5 does nothing: it needs optimizer sgd; take it out, or set it to 0.9",
        ),
        ({"scan_size": 2}, "scan_size 2 does nothing: it needs scan horizontal_strips or vertical_strips;"),
        ({"scan_every": 2}, "scan_every 2 does nothing: a frame has one step with scan 'frames';"),
        ({"frame_net": "cell"}, "frame_net 'cell' does nothing: a frame has one step with scan 'frames';"),
        (
            {"window": 4, "task": "frame_words"},
            "window 4 does nothing: the task 'frame_words' is about whole clips; take it out, or",
        ),
        ({"stride": 4}, "stride 4 does nothing: it needs a window"),
        (
            {"summary": "mean", "task": "frame_labels"},
            "summary 'mean' does nothing: the task 'frame_labels' answers at every frame",
        ),
        (
            {"class_weights": "balanced", "task": "regression"},
            "class_weights 'balanced' does nothing: it needs task classification, frame_labels, multilabel or"
            " frame_multilabel",
        ),
        (
            {"decoder": {"cell": "gru", "num_layers": 2}},
            "decoder.cell 'gru' does nothing: it needs task captioning; take it out, or set it to 'lstm'."
            " decoder.num_layers 2 does nothing",
        ),
        (
            {"task": "captioning", "decoder": {"inject": "start", "doubly_stochastic": 1.0}},
            "decoder.doubly_stochastic 1.0 does nothing: it needs decoder.inject attention",
        ),
        (
            {"segments": {"min_seconds": 0.5}},
            "segments.min_seconds 0.5 does nothing: it needs task frame_labels",
        ),
        (
            {"task": "frame_labels", "segments": {"smoothing_limit": 2.0}},
            "segments.smoothing_limit 2.0 does nothing: it needs segments.smoothing",
        ),
        ({"cell": "none", "bidirectional": False}, "bidirectional false does nothing: it needs cell lstm"),
        ({"monitor": "mae"}, "monitor 'mae' is not measured for the task 'classification'; available: acc"),
    ],
)
def test_what_does_nothing_or_is_not_there_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainConfig.model_validate(wrong)
    (problem,) = caught.value.errors()
    assert problem["msg"].removeprefix("Value error, ").startswith(message)


def test_a_setting_that_does_nothing_may_have_its_default() -> None:
    config = TrainConfig(momentum=0.9, words={"beam_size": 1}, window=None)  # type: ignore[arg-type]
    assert config == TrainConfig()


def test_live_settings_leave_out_what_does_nothing_and_are_a_config_that_trains_the_same() -> None:
    config = TrainConfig.model_validate(
        {"task": "captioning", "cell": "transformer", "hidden_size": 64, "decoder": {"inject": "start"}}
    )
    assert config.live("recurrent")["decoder"] == {
        "cell": "lstm",
        "inject": "start",
        "embedding_size": 64,
        "hidden_size": 128,
        "num_layers": 1,
        "dropout": 0.2,
        "scheduled_sampling": 0.0,
    }
    assert not {"momentum", "question", "projection", "window"} & set(config.live("recurrent"))
    assert TrainConfig.model_validate(config.live("recurrent")) == config
    baseline = TrainConfig.model_validate(config.live("baseline"))
    assert (baseline.cell, baseline.live("baseline")) == ("lstm", config.live("baseline"))


def test_an_evaluation_searches_words_alone_and_compares_lengths_in_a_beam_alone() -> None:
    captioning = TrainConfig(task="captioning")
    searched, said = "it needs task captioning or ctc", "it needs task captioning"
    segments = {"min_seconds": "it needs task frame_labels"}
    assert EvaluateConfig().unused(TrainConfig()) == {"beam_size": searched, "length_power": said, **segments}
    labelled = "it needs task classification, frame_labels, multilabel, frame_multilabel or regression"
    whole = {
        "views": labelled,
        "chunk_frames": "the task 'captioning' reads clips in one piece",
        **segments,
    }
    assert EvaluateConfig().unused(TrainConfig(task="ctc")) == {
        "views": labelled,
        "length_power": said,
        **segments,
        "chunk_frames": "the task 'ctc' reads clips in one piece",
    }
    assert EvaluateConfig().unused(captioning) == {"length_power": "it needs a beam_size above 1", **whole}
    assert EvaluateConfig(beam_size=2).unused(captioning) == whole
    assert EvaluateConfig(beam_size=2).live(captioning)["beam_size"] == 2


def test_chunks_are_of_nets_that_carry_a_state_and_then_clips_are_read_one_by_one() -> None:
    chunks = EvaluateConfig(chunk_frames=8, batch_size=4)
    reasons = chunks.unused(TrainConfig(task="frame_labels", cell="transformer"))
    assert reasons["chunk_frames"] == "it needs cell lstm, gru, rnn or none"
    reasons = chunks.unused(TrainConfig(task="frame_labels", window=4))
    assert "chunk_frames" not in reasons
    assert reasons["batch_size"] == "with chunk_frames, clips are read one by one"
