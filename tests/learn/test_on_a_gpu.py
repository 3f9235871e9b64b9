"""Training and evaluation on a GPU: the same bits wherever the features are, and a CPU's answers."""

from pathlib import Path

import pytest
import torch

from pipeline.learn.answering import answer_batches
from pipeline.learn.member import Member
from pipeline.learn.run import train
from pipeline.learn.streaming import Loader, keep_resident
from pipeline.learn.training import fit_many
from pipeline.manifest import write_manifest
from pipeline.settings.machine import Machine
from pipeline.settings.training import MODELS, ModelName, TrainConfig
from tests.support.configs import live_config
from tests.support.every_training import (
    CONFIGS,
    CPU,
    MAPS,
    SMALL,
    assert_equal_states,
    clips_of,
    make_member,
    trained,
)
from tests.support.features import make_view
from tests.support.toy import make_clip, make_features

pytestmark = pytest.mark.gpu

# Limits of the memory that holds features, and of the GPU's memory for them.
PLACES = {"gpu": (0, None), "memory": (1 << 40, 0), "store": (0, 0)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_trains_to_the_same_bits_wherever_the_features_are_and_answers_as_on_a_cpu(
    tmp_path: Path, name: str, model: ModelName
) -> None:
    config = live_config(**{**SMALL, **CONFIGS[name]})
    clips, cuda = clips_of(range(8)), torch.device("cuda")
    results = []
    for place, (limit_bytes, device_limit_bytes) in PLACES.items():
        features = keep_resident(
            make_features(MAPS),
            clips,
            limit_bytes=limit_bytes,
            device=cuda,
            device_limit_bytes=device_limit_bytes,
        )
        results.append(trained(config, model, tmp_path / f"{place}.pt", features=features, device=cuda))
    net, fit, task = results[0]
    for other, other_fit, _ in results[1:]:
        assert repr(other_fit) == repr(fit)
        for key, value in other.state_dict().items():
            assert torch.equal(value, net.state_dict()[key]), key

    answers = {}
    for device in (cuda, CPU):
        loader = Loader(make_features(MAPS), clips, 4, 2, window=config.window, device=device)
        answers[device.type] = answer_batches(
            net.to(device), loader.epoch(), task=task, device=device, shuffle_seed=0
        )
    for on_gpu, on_cpu in zip(answers["cuda"].outputs, answers["cpu"].outputs, strict=True):
        if torch.is_tensor(on_gpu):
            torch.testing.assert_close(on_gpu.float(), on_cpu.float(), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_training_that_was_stopped_goes_on_to_the_same_numbers(tmp_path: Path, precision: str) -> None:
    config = TrainConfig.model_validate(
        {"projection": 64, "hidden_size": 128, "epochs": 3, "batch_size": 8, "precision": precision}
    )
    clips = [
        make_clip(f"c{number}", split=("train", "train", "val", "test")[number % 4], label="ab"[number % 2])
        for number in range(60)
    ]
    write_manifest(tmp_path / "manifest.csv", clips)
    lengths = {clip.clip_id: 3 + number % 5 for number, clip in enumerate(clips)}
    features = make_view(tmp_path, lengths)

    def run(name: str, **options: object) -> dict[str, object]:
        result = train(
            features,
            tmp_path / "manifest.csv",
            config=config,
            checkpoints=tmp_path / name,
            state=tmp_path / f"{name}.state",
            **options,  # type: ignore[arg-type]
        )
        return {model: repr(fit) for model, fit in result.fits.items()}

    def stop(name: str, num_done: int, _: int) -> None:
        if (name, num_done) == ("recurrent", 7):
            raise KeyboardInterrupt

    undisturbed = run("undisturbed")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", on_batch=stop)
    assert run("stopped", machine=Machine(resident_mb=0, resident_gpu_mb=0)) == undisturbed
    files = [tmp_path / name / "recurrent/model.safetensors" for name in ("undisturbed", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("model", MODELS)
def test_members_that_are_trained_together_equal_each_alone(tmp_path: Path, model: ModelName) -> None:
    changes = [
        *CONFIGS.values(),
        {"learning_rate": 0.01, "dropout": 0.3},
        {"hidden_size": 5, "weight_decay": 0.1, "cell": "gru", "num_layers": 2, "seed": 1},
        {"precision": "bfloat16"},
        {"precision": "float16"},
    ]

    def make(name: str) -> list[Member]:
        (tmp_path / name).mkdir()
        return [
            make_member(
                live_config(**{**SMALL, **each}),
                model,
                tmp_path / name / f"{number}.pt",
                device=torch.device("cuda"),
            )
            for number, each in enumerate(changes)
        ]

    alone, together = make("alone"), make("together")
    for member in alone:
        fit_many([member])
    for num_batches in {len(member.train) for member in together}:
        fit_many([member for member in together if len(member.train) == num_batches])
    for first, second in zip(alone, together, strict=True):
        assert_equal_states(first, second)
