"""Exported files, run by ONNX Runtime and by PyTorch alone, against the model."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

from pipeline.backbone import Weights
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.deploy.end_to_end import EndToEnd, clip_pixels, make_backbone
from pipeline.deploy.export_chain import export_chain
from pipeline.deploy.export_formats import FORMATS
from pipeline.deploy.export_tracing import Exported, metadata
from pipeline.deploy.prediction import answer_clip
from pipeline.errors import ConfigError, MissingPackageError, PipelineError
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pipeline.learn.vocabulary import pad_groups
from pipeline.manifest import Clip
from stages import console, export
from tests.support.checkpoints import make_checkpoint, open_onnx
from tests.support.extraction import random_weights
from tests.support.media import write_video

pytestmark = pytest.mark.slow

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


def random_frames(num_clips: int, num_frames: int = NUM_FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(num_clips)
    return torch.randint(0, 256, (num_clips, num_frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


def network(checkpoint: Checkpoint, weights: Weights) -> EndToEnd:
    whole = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights)
    return whole.eval().requires_grad_(False)


def export_to(path: Path, checkpoint: Checkpoint, weights: Weights, **options: float) -> Exported:
    frames = random_frames(3)
    return export_chain(
        checkpoint, weights, path=path, num_frames=NUM_FRAMES, check_with={"noise": frames}, **options
    )


LENGTHS = (1, NUM_FRAMES, 9)  # in frames; files are traced with NUM_FRAMES


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("classification", {}),
        (
            "frame_labels",
            {"cell": "gru", "scan": "rows", "scan_every": 4, "frame_net": "cell", "summary": "attention"},
        ),
        ("classification", {"cell": "rnn", "num_layers": 2, "bidirectional": False, "summary": "mean"}),
        (
            "classification",
            {
                "scan": "locations",
                "frame_net": "points",
                "cell": "transformer",
                "hidden_size": 8,
                "bidirectional": False,
            },
        ),
        ("frame_multilabel", {"cell": "none"}),
    ],
)
def test_onnx_runtime_gives_the_models_probabilities_for_any_number_of_clips_and_frames(
    tmp_path, weights, name, options
):
    checkpoint = make_checkpoint(name, weights, tap="layer1", **options)
    exported = export_to(tmp_path / "model.onnx", checkpoint, weights)
    assert max(exported.differences.values()) < 1e-4
    assert exported.num_frames is None
    session = open_onnx(tmp_path / "model.onnx")
    model = network(checkpoint, weights)
    for num_clips, num_frames in product((1, 2, 5), LENGTHS):
        frames = random_frames(num_clips, num_frames)
        (answers,) = session.run(["answers"], {"frames": frames.numpy()})
        outputs = model(frames)
        expected = outputs.sigmoid() if name == "frame_multilabel" else outputs.softmax(dim=-1)
        torch.testing.assert_close(torch.from_numpy(answers), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"summary": "max", "scan": "locations", "scan_every": 16},
        {"cell": "rnn", "tail": "layer2", "pooling": "avg"},
        {"cell": "gru", "num_layers": 2, "summary": "attention"},
    ],
)
def test_pytorch_alone_gives_the_models_values_for_any_number_of_clips_and_frames(tmp_path, weights, options):
    checkpoint = make_checkpoint("regression", weights, tap="layer1", **options)
    exported = export_to(tmp_path / "model.pt2", checkpoint, weights)
    assert max(exported.differences.values()) < 1e-4
    assert exported.num_frames is None
    module = torch.export.load(tmp_path / "model.pt2").module()
    model = network(checkpoint, weights)
    for num_clips, num_frames in product((1, 2, 5), LENGTHS):
        frames = random_frames(num_clips, num_frames)
        expected = model(frames) * torch.tensor([2.0, 0.5]) + torch.tensor([10.0, -5.0])
        torch.testing.assert_close(module(frames), expected, rtol=1e-3, atol=1e-4)


def read_metadata(path: Path) -> dict[str, object]:
    if path.suffix == ".onnx":
        (properties,) = onnx.load(path).metadata_props
        assert properties.key == "framecache.json"
        return json.loads(properties.value)
    files = {"framecache.json": ""}
    torch.export.load(path, extra_files=files)
    return json.loads(files["framecache.json"])


def test_metadata_say_how_frames_are_made_and_how_many_a_clip_has(weights):
    checkpoint = make_checkpoint("classification", weights, tap="layer1", sampling={"every": 2})
    found = json.loads(metadata(checkpoint, num_frames=None))
    assert found["num_frames"] is None
    assert found["clips"].startswith("Takes clips of any number of frames. Give all frames that")
    assert found["task"]["classes"] == ["left", "right", "up"]
    assert found["contract"]["preprocessing"] == {"resize": 40, "crop": 32, "interpolation": "bilinear"}
    assert found["contract"]["sampling"] == {"every": 2}


@pytest.mark.parametrize(("suffix", "error"), [(".onnx", r"index: 1 Got: 5 Expected: 4"), (".pt2", r"== 4")])
def test_a_file_of_a_model_that_reads_windows_takes_a_window_and_nothing_else(
    tmp_path, weights, suffix, error
):
    checkpoint = make_checkpoint("classification", weights, tap="layer1", window=NUM_FRAMES, stride=2)
    path = tmp_path / f"model{suffix}"
    exported = export_to(path, checkpoint, weights)
    assert exported.num_frames == NUM_FRAMES
    assert read_metadata(path) == json.loads(metadata(checkpoint, num_frames=NUM_FRAMES))
    assert "Cut a longer clip into windows that start every 2 frames" in read_metadata(path)["clips"]
    answer, frames = FORMATS[suffix].load(path), random_frames(2)
    expected = network(checkpoint, weights)(frames).softmax(dim=-1)
    torch.testing.assert_close(answer(frames), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(Exception, match=error):
        answer(random_frames(2, NUM_FRAMES + 1))
    with pytest.raises(ConfigError, match=r"windows of 4 frames, .* clips of 3\."):
        export_chain(checkpoint, weights, path=path, num_frames=3, check_with={"noise": random_frames(1, 3)})


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
    expected = r"ONNX, unlike \.pt2, needs the package onnxruntime: pip install 'framecache\[export\]'"
    with pytest.raises(MissingPackageError, match=expected):
        export_to(tmp_path / "model.onnx", checkpoint, weights)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_an_exported_model_answers_questions_of_any_number_and_length(tmp_path, weights, suffix):
    checkpoint = make_checkpoint("question_answering", weights, tap="layer1")
    exported = export_to(tmp_path / f"model{suffix}", checkpoint, weights)
    assert max(exported.differences.values()) < 1e-4
    answer = FORMATS[suffix].load(tmp_path / f"model{suffix}")
    vocabulary = checkpoint.task.vocabulary
    model = network(checkpoint, weights)
    for num_frames, texts in ((1, ["which is it?"]), (6, ["it?", "is", "which which is it is it?" * 4])):
        frames = random_frames(2, num_frames)
        questions = pad_groups([[vocabulary.encode(text) for text in texts]] * 2)
        expected = model(frames, questions=questions)[..., 1:].softmax(dim=-1)
        torch.testing.assert_close(answer(frames, questions), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def run(tmp_path, weights, monkeypatch, capsys) -> Callable[..., str]:
    """Runs the stage in a folder with a checkpoint, weights, and a manifest of a clip of 20 frames."""
    save_weights(weights, path=tmp_path / "weights/resnet18.safetensors")
    checkpoint = make_checkpoint("classification", weights, tap="layer1")
    save_checkpoint(tmp_path / "checkpoints/recurrent", checkpoint)
    windows = make_checkpoint("classification", weights, tap="layer1", window=25)
    save_checkpoint(tmp_path / "checkpoints/windows", windows)
    write_video(tmp_path / "videos/clip.mp4", num_frames=20, size=(48, 64))
    rows = "train,clip.mp4,train,\nval,clip.mp4,val,0.1\ntest,clip.mp4,test,\n"
    (tmp_path / "manifest.csv").write_text("clip_id,source,split,start_seconds\n" + rows)
    (tmp_path / "params.yaml").write_text("corpus: {manifest: manifest.csv, root: videos}\n")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        if fails:
            with pytest.raises(SystemExit):
                console.run(export.main)
            return capsys.readouterr().err
        console.run(export.main)
        return capsys.readouterr().out

    return run


def test_the_stage_checks_with_some_frames_and_the_file_takes_all_of_a_clip(run):
    lines = run("--out", "out/model.pt2", "--frames", "10").splitlines()
    assert lines[0] == "out/model.pt2: frames (B, T, 3, 32, 32) uint8 -> classification"
    assert lines[1].startswith("largest difference on random frames: ")
    assert lines[2].startswith("largest difference on frames of videos/clip.mp4: ")
    assert lines[3].startswith("Takes clips of any number of frames. Give all frames that")
    checkpoint = load_checkpoint(Path("checkpoints/recurrent"))
    clip = Clip(clip_id="clip", sources=("clip.mp4",), split="")
    frames = torch.cat(
        [pixels for pixels, _ in clip_pixels(clip, root=Path("videos"), contract=checkpoint.contract)]
    )
    assert len(frames) == 20
    answers = torch.export.load("out/model.pt2").module()(frames[None])[0]
    backbone = make_backbone(
        checkpoint.contract, load_weights(Path("weights/resnet18.safetensors")), device=torch.device("cpu")
    )
    (said,) = answer_clip(clip, root=Path("videos"), checkpoint=checkpoint, backbones=[backbone])
    assert said["label"] == checkpoint.task.classes[answers.argmax()]
    assert said["probability"] == pytest.approx(float(answers.max()), abs=1e-4)


def test_the_stage_fills_a_window_to_check_with(run):
    output = run("--checkpoint", "checkpoints/windows", "--out", "model.pt2")
    assert output.startswith("model.pt2: frames (B, 25, 3, 32, 32) uint8")
    assert "Takes exactly 25 frames" in output
    message = run("--checkpoint", "checkpoints/windows", "--out", "model.pt2", "--frames", "10", fails=True)
    assert "error: The model reads windows of 25 frames" in message


def test_without_a_corpus_the_stage_asks_for_a_clip_in_one_message(run, tmp_path):
    (tmp_path / "videos/clip.mp4").rename(tmp_path / "elsewhere.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    expected = "error: No clip to compare the exported file with: "
    for arguments, named in (
        ((), "clip.mp4"),
        (("--clip", "missing.mp4"), "missing.mp4"),
        (("--clip", "broken.mp4"), "broken.mp4"),
    ):
        message = run("--out", "model.pt2", *arguments, fails=True)
        assert message.startswith(expected)
        assert named in message
        assert message.endswith(": --clip SOURCE.\n")
        assert message.count("\n") == 1
    (tmp_path / "manifest.csv").unlink()
    assert "No manifest manifest.csv" in run("--out", "model.pt2", fails=True)
    (tmp_path / "params.yaml").unlink()
    assert run("--out", "model.pt2", fails=True).endswith("folder of images: --clip SOURCE.\n")
    assert "frames of elsewhere.mp4" in run("--out", "model.pt2", "--clip", "elsewhere.mp4")
