"""Exported files, run by ONNX Runtime and by PyTorch alone, against the model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from pipeline.backbone import Weights
from pipeline.checkpoint import Checkpoint, save_checkpoint
from pipeline.end_to_end import EndToEnd
from pipeline.errors import ConfigError, PipelineError
from pipeline.export import FORMATS, Exported, export_chain
from pipeline.vocabulary import pad_groups
from pipeline.weights import WeightsConfig, obtain_weights, save_weights
from stages import console, export
from tests.checkpoints import make_checkpoint
from tests.media import write_video

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def weights() -> Weights:
    return obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))


def random_frames(num_clips: int, num_frames: int = NUM_FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(num_clips)
    return torch.randint(0, 256, (num_clips, num_frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


def outputs(checkpoint: Checkpoint, weights: Weights, frames: Tensor) -> Tensor:
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    with torch.no_grad():
        return network(frames)


def export_to(path: Path, checkpoint: Checkpoint, weights: Weights, **options: float) -> Exported:
    frames = random_frames(3)
    return export_chain(checkpoint, weights, path=path, num_frames=NUM_FRAMES, check_with=[frames], **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classification", {}),
        ("classification", {"scan": "locations", "frame_net": "points"}),
        (
            "frame_labels",
            {"cell": "gru", "scan": "rows", "scan_every": 4, "frame_net": "cell", "summary": "attention"},
        ),
    ],
)
def test_onnx_runtime_gives_the_models_probabilities_for_any_number_of_clips(
    tmp_path, weights, name, options
):
    checkpoint = make_checkpoint(name, weights, tap="layer1", **options)
    exported = export_to(tmp_path / "model.onnx", checkpoint, weights)
    assert max(exported.differences) < 1e-4
    assert not exported.any_num_frames
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for num_clips in (1, 2, 5):
        frames = random_frames(num_clips)
        (answers,) = session.run(["answers"], {"frames": frames.numpy()})
        expected = outputs(checkpoint, weights, frames).softmax(dim=-1)
        torch.testing.assert_close(torch.from_numpy(answers), expected, rtol=1e-3, atol=1e-4)
    (properties,) = onnx.load(tmp_path / "model.onnx").metadata_props
    metadata = json.loads(properties.value)
    assert properties.key == "framecache.json"
    assert metadata["num_frames"] == NUM_FRAMES
    assert metadata["task"]["classes"] == ["left", "right", "up"]
    assert metadata["contract"]["preprocessing"] == {"resize": 40, "crop": 32, "interpolation": "bilinear"}


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"summary": "max", "scan": "locations", "scan_every": 16}, (1, 4, 7)),
        ({"cell": "rnn", "tail": "layer2", "pooling": "avg"}, (4,)),
    ],
)
def test_pytorch_alone_gives_the_models_values_for_any_number_of_clips(tmp_path, weights, options, lengths):
    checkpoint = make_checkpoint("regression", weights, tap="layer1", **options)
    exported = export_to(tmp_path / "model.pt2", checkpoint, weights)
    assert max(exported.differences) < 1e-4
    assert exported.any_num_frames == (len(lengths) > 1)
    files = {"framecache.json": ""}
    module = torch.export.load(tmp_path / "model.pt2", extra_files=files).module()
    assert json.loads(files["framecache.json"])["task"]["name"] == "regression"
    for length in lengths:
        for num_clips in (1, 2, 5):
            frames = random_frames(num_clips, length)
            expected = outputs(checkpoint, weights, frames)
            expected = expected * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -5.0])
            torch.testing.assert_close(module(frames), expected, rtol=1e-3, atol=1e-4)


def test_a_file_that_differs_from_the_model_is_not_written(tmp_path, weights, monkeypatch):
    form = FORMATS[".pt2"]
    broken = replace(form, load=lambda path: lambda frames: form.load(path)(frames) + 0.01)
    monkeypatch.setitem(FORMATS, ".pt2", broken)
    checkpoint = make_checkpoint("classification", weights, tap="layer1")
    with pytest.raises(PipelineError, match=r"would differ from the model by 0\.01, more than 0\.001"):
        export_to(tmp_path / "model.pt2", checkpoint, weights)
    assert not list(tmp_path.iterdir())


def test_missing_packages_and_other_formats_are_told(tmp_path, weights, monkeypatch):
    checkpoint = make_checkpoint("classification", weights, tap="layer1")
    with pytest.raises(ConfigError, match=r"Can't export to .*model\.tflite\. Available: \.onnx, \.pt2\."):
        export_to(tmp_path / "model.tflite", checkpoint, weights)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expected = r"needs the package onnxruntime\. Run `pip install '\.\[export\]'`, or export to \.pt2\."
    with pytest.raises(ConfigError, match=expected):
        export_to(tmp_path / "model.onnx", checkpoint, weights)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_model_answers_questions_of_any_number_and_length(tmp_path, weights, suffix):
    checkpoint = make_checkpoint("question_answering", weights, tap="layer1")
    exported = export_to(tmp_path / f"model{suffix}", checkpoint, weights)
    assert max(exported.differences) < 1e-4
    answer = FORMATS[suffix].load(tmp_path / f"model{suffix}")
    vocabulary = checkpoint.task.vocabulary
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    for texts in (["which is it?"], ["it?", "is", "which which is it is it?"]):
        frames = random_frames(2)
        questions = pad_groups([[vocabulary.encode(text) for text in texts]] * 2)
        if suffix == ".onnx":
            questions = torch.nn.functional.pad(questions, (0, 20 - questions.shape[2]))
        with torch.no_grad():
            expected = network(frames, questions=questions)[..., 1:].softmax(dim=-1)
        torch.testing.assert_close(answer(frames, questions), expected, rtol=1e-3, atol=1e-4)


def test_the_stage_checks_with_random_frames_and_with_those_of_the_corpus(
    tmp_path, weights, monkeypatch, capsys
):
    save_weights(weights, path=tmp_path / "weights/resnet18.safetensors")
    for name, sampling in (("all", "all"), ("count", {"count": 3})):
        checkpoint = make_checkpoint("classification", weights, tap="layer1", sampling=sampling)
        save_checkpoint(tmp_path / name, checkpoint)
    write_video(tmp_path / "videos/clip.mp4", num_frames=2, size=(48, 64))
    rows = "".join(f"{split},clip.mp4,{split}\n" for split in ("train", "val", "test"))
    (tmp_path / "manifest.csv").write_text("clip_id,source,split\n" + rows)
    (tmp_path / "params.yaml").write_text("corpus: {manifest: manifest.csv, root: videos}\n")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        console.run(export.main)
        return capsys.readouterr().out

    lines = run("--checkpoint", "count", "--out", "out/model.pt2").splitlines()
    assert lines[0] == "out/model.pt2: frames (B, T, 3, 32, 32) uint8 -> classification"
    assert lines[1].startswith("largest difference on random frames: ")
    assert lines[2].startswith("largest difference on frames of clip.mp4: ")
    assert torch.export.load("out/model.pt2").module()(random_frames(1, 3)).shape == (1, 3)
    with pytest.raises(SystemExit):
        run("--checkpoint", "all", "--out", "any.pt2")
    assert "error: The model reads clips of any length, the exported file of one: give --frames." in (
        capsys.readouterr().err
    )
