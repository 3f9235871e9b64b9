"""Settings that do nothing: what `unused` lists changes no trained model, and what it does not list does."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.settings.training import MODELS, AnyTrainConfig, ModelName, TrainConfig
from tests.support.configs import live_config
from tests.support.every_training import CONFIGS, SMALL, WORSE, trained

# Other values of each setting; the first that differs and is possible is tried.
OTHERS: dict[str, tuple[object, ...]] = {
    "scan": ("channels", "rows"),
    "scan_size": (2, 1),
    "scan_every": (2, 1),
    "frame_net": ("cell", "points"),
    "pooling": ("max", "avg"),
    "projection": (5, 3),
    "cell": ("gru", "rnn"),
    "hidden_size": (6,),
    "num_layers": (2, 1),
    "num_heads": (1,),
    "bidirectional": (False, True),
    "summary": ("attention", "max"),
    "dropout": (0.2,),
    "augment.frame_dropout": (0.5,),
    "augment.time_warp": (0.9,),
    "augment.mixup": (0.3,),
    "augment.noise": (0.5,),
    "class_weights": ("balanced", None),
    "effective_number_beta": (0.9,),
    "focal_gamma": (2.0,),
    "segments.background": (("a",),),
    "segments.smoothing": (0.5,),
    "segments.smoothing_limit": (0.01,),
    "segments.min_seconds": (0.1,),
    "words.min_count": (2, 1),
    "words.max_words": (1,),
    "words.beam_size": (2,),
    "words.length_power": (1.0,),
    "decoder.cell": ("gru", "rnn"),
    "decoder.inject": ("every_step", "start"),
    "decoder.embedding_size": (7,),
    "decoder.hidden_size": (6,),
    "decoder.num_layers": (2,),
    "decoder.num_heads": (1,),
    "decoder.dropout": (0.5,),
    "decoder.doubly_stochastic": (2.0,),
    "decoder.scheduled_sampling": (0.9,),
    "decoder.scheduled_sampling_steps": (1,),
    "question.embedding_size": (7,),
    "question.hidden_size": (7,),
    "question.joint_size": (7,),
    "question.dropout": (0.5,),
    "batch_size": (3,),
    "fusion": ("late", "early"),
    "window": (2, None),
    "stride": (1,),
    "views": (("center", "flip"),),
    "crop_frames": (4, None),
    "bucketing": (True, False),
    "balanced_sampling": (True, False),
    "epochs": (3,),
    "optimizer": ("sgd", "adamw"),
    "learning_rate": (0.01,),
    "tail_learning_rate": (0.1,),
    "momentum": (0.1,),
    "weight_decay": (0.5,),
    "schedule": ("constant", "cosine"),
    "warmup_epochs": (1,),
    "grad_clip": (0.01,),
    "precision": ("bfloat16", "float32"),
    "tail": ("layer4", None),
    "standardise": (False, True),
    "monitor": ("loss",),
    "patience": (1, None),
    "seed": (2,),
}
# `task`, `tap` and `streams` say what is trained on what; `train` applies the threads.
OF_EVERY_RUN = {"task", "tap", "streams", "intra_op_threads"}
# Whether another epoch is the best, whether training stops, which segments answers have, and whether a beam
# finds other words depends on the data.
OF_SOME_DATA = {"monitor", "patience", "segments.background", "segments.min_seconds", "words.beam_size"}


def small_config(values: dict[str, Any]) -> TrainConfig:
    """One epoch; of words two, as after one, beams of other sizes may still find the same words."""
    epochs = 2 if "words" in values else 1
    return live_config(**{**SMALL, "epochs": epochs, **values})


def outcome(config: TrainConfig, model: ModelName, path: Path) -> tuple[dict[str, torch.Tensor], object]:
    """Weights, and all else that training gives: of each epoch the metrics, the best one, and the task."""
    path.unlink(missing_ok=True)
    net, fit, task = trained(config, model, path)
    return net.state_dict(), repr((fit, task.describe() if task.facts.says_words else ""))


def are_equal(
    one: tuple[dict[str, torch.Tensor], object], other: tuple[dict[str, torch.Tensor], object]
) -> bool:
    return (
        one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(torch.equal(value, other[0][name]) for name, value in one[0].items())
    )


def is_unused(key: str, unused: dict[str, str]) -> bool:
    return key in unused or key.partition(".")[0] in unused


def changed(config: TrainConfig, key: str) -> TrainConfig | None:
    """The config with another possible value of the setting; None if there is none."""
    for value in OTHERS[key]:
        values = config.model_dump()
        section, _, name = key.rpartition(".")
        place = values[section] if section else values
        if place[name] == value:
            continue
        place[name] = value
        try:
            return AnyTrainConfig.model_validate(values)
        except ValidationError:
            continue
    return None


def keys_of(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@cache
def always_used() -> set[str]:
    """The settings that no rule is about. To try them in two of the configs is enough, and much quicker."""
    unused = [live_config(**each).unused(model) for each in CONFIGS.values() for model in MODELS]
    return {key for key in OTHERS if not any(is_unused(key, each) for each in unused)}


def test_other_values_are_known_of_every_setting():
    assert set(OTHERS) | OF_EVERY_RUN == set(keys_of(TrainConfig().model_dump()))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_unused_settings_change_nothing_and_all_others_something(tmp_path, name, model):
    config = small_config(CONFIGS[name])
    unused = config.unused(model)
    before = outcome(config, model, tmp_path / "state.pt")
    other = config
    for key in OTHERS:
        # Of these the default is the only possible value.
        impossible = key == "window" or (key == "frame_net" and model == "recurrent")
        if is_unused(key, unused) and not impossible:
            other = changed(other, key) or other
    assert are_equal(outcome(other, model, tmp_path / "state.pt"), before)
    silent = {
        key
        for key in OTHERS
        if not is_unused(key, unused)
        and (key in OF_SOME_DATA if name == WORSE else key not in always_used() or name == "defaults")
        and (other := changed(config, key))
        and are_equal(outcome(other, model, tmp_path / "state.pt"), before)
    }
    assert silent <= (set() if name == WORSE else OF_SOME_DATA)


def test_each_setting_counts_in_one_of_the_configs():
    configs = [small_config(values) for values in CONFIGS.values()]
    assert set(OTHERS) == {
        key
        for config in configs
        for key in OTHERS
        if not is_unused(key, config.unused("recurrent")) and changed(config, key)
    }
