"""`python -m stages.predict`, in this process: new sources by a checkpoint that was never trained."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from pipeline.backbone import Weights, preprocess
from pipeline.backbone.sources import obtain_weights
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.contract import Sampling
from pipeline.deploy.end_to_end import EndToEnd
from pipeline.deploy.export_captions import MapsToMemory
from pipeline.frames import read_frames
from pipeline.learn.checkpoint import load_checkpoint, save_checkpoint
from pipeline.learn.ctc import ctc_losses, likeliest_words
from pipeline.learn.decoding import beam_search
from pipeline.learn.models.attention import Memory
from pipeline.learn.vocabulary import END, START, UNKNOWN, pad_groups
from pipeline.settings.weights import WeightsConfig
from stages import console, predict
from tests.support.checkpoints import CLASSES, TASKS, make_checkpoint
from tests.support.extraction import random_weights
from tests.support.media import write_image, write_image_folder, write_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    """Weights, checkpoints/<task>, and media/ with a video, two folders and a file that is no video."""
    path = tmp_path_factory.mktemp("predict")
    save_weights(weights, path=path / "weights/anything.safetensors")
    for name in TASKS:
        save_checkpoint(path / "checkpoints" / name, make_checkpoint(name, weights))
    write_video(path / "media/clips/video.mp4", num_frames=7, size=(48, 64))
    write_image_folder(path / "media/clips/images", num_images=3)
    (path / "media/clips/notes.txt").write_text("no clip")
    (path / "media/bad.mp4").write_bytes(b"no video")
    return path


def run(
    capsys: pytest.CaptureFixture[str], workspace: Path, *arguments: str, status: int = 0
) -> tuple[str, str]:
    """Run the stage in the workspace; its stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "argv", ["predict", *arguments])
        found = 0
        try:
            console.run(predict.main)
        except SystemExit as end:
            found = int(end.code or 0)
    output = capsys.readouterr()
    assert found == status, output.err
    return output.out, output.err


def end_to_end(workspace: Path, weights: Weights, name: str, source: str) -> tuple[torch.Tensor, list[float]]:
    """The outputs of one module, all frames at once, and the frames' times."""
    checkpoint = load_checkpoint(workspace / "checkpoints" / name)
    (batch,) = read_frames([workspace / source], sampling=checkpoint.contract.sampling)
    frames = preprocess(torch.from_numpy(batch.pixels), checkpoint.contract.preprocessing)
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    with torch.no_grad():
        return network(frames[None])[0], batch.frame_seconds.tolist()


def test_every_source_is_answered_with_the_likeliest_classes(capsys, workspace, weights):
    arguments = ["media/clips", "media/clips/images/2.png", "--checkpoint", "checkpoints/classification"]
    stdout, _ = run(capsys, workspace, *arguments, "--top", "2", "--json")
    results = json.loads(stdout)
    sources = ["media/clips/images", "media/clips/video.mp4", "media/clips/images/2.png"]
    assert [result["source"] for result in results] == sources
    for result in results:
        logits, _ = end_to_end(workspace, weights, "classification", result["source"])
        probabilities = logits.softmax(dim=0)
        ranked = probabilities.argsort(descending=True)[:2].tolist()
        assert [answer["label"] for answer in result["answers"]] == [CLASSES[number] for number in ranked]
        for answer, number in zip(result["answers"], ranked, strict=True):
            assert answer["probability"] == pytest.approx(probabilities[number].item(), rel=1e-3)


def test_a_corrupt_source_is_named_the_rest_is_answered_and_the_exit_status_is_1(capsys, workspace):
    sources = ["media/bad.mp4", "media/gone.mp4", "media/clips/video.mp4"]
    arguments = [*sources, "--checkpoint", "checkpoints/classification"]
    stdout, stderr = run(capsys, workspace, *arguments, status=1)
    header, answer = stdout.splitlines()
    assert header.split() == ["source", "label", "probability"]
    assert answer.split()[0] == "media/clips/video.mp4"
    assert answer.split()[1] in CLASSES
    assert "error: media/bad.mp4 can't be decoded" in stderr
    assert "No such file or directory: media/gone.mp4. Correct the path" in stderr
    assert "error: 2 of 3 sources could not be read" in stderr
    results = json.loads(run(capsys, workspace, *arguments, "--json", status=1)[0])
    assert ["error" in result for result in results] == [True, True, False]


def test_clips_of_a_table_are_printed_with_their_columns_of_ones_own(capsys, workspace):
    (workspace / "media/clips.csv").write_text(
        "source,meta_camera,meta_site\nclips/video.mp4,2,\nclips/images,,A\n"
    )
    arguments = ["media/clips.csv", "media/clips/images/2.png", "--checkpoint", "checkpoints/classification"]
    header, first, second, third = run(capsys, workspace, *arguments)[0].splitlines()
    assert header.split() == ["source", "meta_camera", "meta_site", "label", "probability"]
    assert first.split()[:2] == ["clips/video", "2"]
    assert second.split()[:2] == ["clips/images", "A"]
    assert third.split()[1] in CLASSES
    results = json.loads(run(capsys, workspace, *arguments, "--json")[0])
    assert [list(result) for result in results] == [
        ["source", "meta_camera", "answers"],
        ["source", "meta_site", "answers"],
        ["source", "answers"],
    ]


def test_labels_of_frames_are_intervals_of_their_times(capsys, workspace, weights):
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/frame_labels", "--json"]
    (result,) = json.loads(run(capsys, workspace, *arguments)[0])
    logits, seconds = end_to_end(workspace, weights, "frame_labels", "media/clips/video.mp4")
    by_hand = [CLASSES[number] for number in logits.argmax(dim=1).tolist()]
    for second, label in zip(seconds, by_hand, strict=True):
        (interval,) = [
            item for item in result["answers"] if item["start_seconds"] <= second < item["end_seconds"]
        ]
        assert interval["label"] == label
    assert result["answers"][-1]["end_seconds"] == pytest.approx(0.7)


def test_values_are_in_the_manifests_unit(capsys, workspace, weights):
    arguments = ["media/clips/images", "--checkpoint", "checkpoints/regression", "--json"]
    ((answer,),) = [result["answers"] for result in json.loads(run(capsys, workspace, *arguments)[0])]
    outputs, _ = end_to_end(workspace, weights, "regression", "media/clips/images")
    assert answer["value 1"] == pytest.approx(10 + 2 * outputs[0].item(), rel=1e-3)
    assert answer["value 2"] == pytest.approx(-5 + 0.5 * outputs[1].item(), rel=1e-3)


def test_windows_of_a_long_clip_are_averaged_as_in_evaluation(capsys, workspace, weights):
    checkpoint = make_checkpoint("classification", weights, window=3, stride=2)
    save_checkpoint(workspace / "checkpoints/windows", checkpoint)
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/windows", "--top", "3", "--json"]
    (result,) = json.loads(run(capsys, workspace, *arguments)[0])
    (batch,) = read_frames([workspace / "media/clips/video.mp4"], sampling=Sampling())
    frames = preprocess(torch.from_numpy(batch.pixels), checkpoint.contract.preprocessing)
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    with torch.no_grad():
        logits = torch.stack([network(frames[None, first : first + 3])[0] for first in (0, 2, 4)]).mean(dim=0)
    expected = dict(zip(CLASSES, logits.softmax(dim=0).tolist(), strict=True))
    assert {item["label"]: item["probability"] for item in result["answers"]} == pytest.approx(
        expected, rel=1e-3
    )


def test_weights_that_are_not_there_are_asked_for_by_their_source(capsys, workspace, weights, tmp_path):
    source = str(workspace / "media/clips/video.mp4")
    checkpoint = str(workspace / "checkpoints/classification")
    _, stderr = run(capsys, tmp_path, source, "--checkpoint", checkpoint, status=1)
    assert (
        "error: weights does not have the weights of the resnet18 that made the features (from random:0,"
        f" sha256 {weights.sha256}). In params.yaml, set weights.arch and weights.source" in stderr
    )
    given = str(workspace / "weights/anything.safetensors")
    stdout, _ = run(capsys, tmp_path, source, "--checkpoint", checkpoint, "--weights", given)
    assert "video.mp4" in stdout
    save_weights(
        obtain_weights(WeightsConfig(arch="resnet18", source="random:1")), path=tmp_path / "w.safetensors"
    )
    arguments = [source, "--checkpoint", checkpoint, "--weights", "w.safetensors"]
    _, stderr = run(capsys, tmp_path, *arguments, status=1)
    assert "These weights are resnet18 from random:1 with sha256" in stderr


def test_an_empty_folder_is_named(capsys, workspace, tmp_path):
    arguments = [str(tmp_path), "--checkpoint", "checkpoints/classification"]
    _, stderr = run(capsys, workspace, *arguments, status=1)
    assert f"error: {tmp_path} has no images" in stderr


def test_a_folder_of_videos_and_images_gives_each_file_an_answer_and_a_link_to_it_makes_no_loop(
    capsys, workspace, tmp_path
):
    for name in ("b.mp4", "inside/c.mp4", "stills/1.png", "stills/2.png", "stills/masks/1.png"):
        write = write_image if name.endswith("png") else write_video
        write(tmp_path / name, **({"index": 1} if name.endswith("png") else {"num_frames": 2}))
    write_image(tmp_path / "cover.png", index=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "here").symlink_to(tmp_path)
    arguments = [str(tmp_path), "--checkpoint", "checkpoints/classification", "--json"]
    stdout, stderr = run(capsys, workspace, *arguments)
    sources = [result["source"].removeprefix(f"{tmp_path}/") for result in json.loads(stdout)]
    assert sources == ["b.mp4", "cover.png", "inside/c.mp4", "stills", "stills/masks"]
    assert f"{tmp_path} holds videos beside images: each image is a clip of its own" in stderr


def test_a_caption_is_what_the_decoder_says_of_the_clips_features(capsys, workspace, weights):
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/captioning", "--json"]
    ((row,),) = [result["answers"] for result in json.loads(run(capsys, workspace, *arguments)[0])]
    checkpoint = load_checkpoint(workspace / "checkpoints/captioning")
    network = EndToEnd(MapsToMemory(checkpoint.model), contract=checkpoint.contract, weights=weights).eval()
    (batch,) = read_frames([workspace / "media/clips/video.mp4"], sampling=checkpoint.contract.sampling)
    frames = preprocess(torch.from_numpy(batch.pixels), checkpoint.contract.preprocessing)
    with torch.no_grad():
        states, summary, *_ = network(frames[None])
    memory = Memory(states, torch.ones(states.shape[:2], dtype=torch.bool), summary)
    (sentence,) = beam_search(checkpoint.model.decoder, memory, beam_size=1, max_words=6)
    assert row["caption"] == TASKS["captioning"].vocabulary.decode(sentence.words)
    assert row["log_probability"] == pytest.approx(sentence.log_probability, rel=1e-3)


def test_words_are_read_off_the_frames(capsys, workspace, weights):
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/frame_words", "--json"]
    ((row,),) = [result["answers"] for result in json.loads(run(capsys, workspace, *arguments)[0])]
    checkpoint = load_checkpoint(workspace / "checkpoints/frame_words")
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    (batch,) = read_frames([workspace / "media/clips/video.mp4"], sampling=checkpoint.contract.sampling)
    with torch.no_grad():
        logits = network(preprocess(torch.from_numpy(batch.pixels), checkpoint.contract.preprocessing)[None])
    words = (logits[0, :, [END, *range(4, logits.shape[2])]]).argmax(dim=1).tolist()
    numbers = [END if word == 0 else word + 3 for word in words]
    assert row["caption"] == TASKS["frame_words"].vocabulary.decode(numbers)


def test_what_frames_say_is_searched_by_the_trained_beam(capsys, workspace, weights):
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/ctc", "--json"]
    ((row,),) = [result["answers"] for result in json.loads(run(capsys, workspace, *arguments)[0])]
    checkpoint = load_checkpoint(workspace / "checkpoints/ctc")
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights).eval()
    (batch,) = read_frames([workspace / "media/clips/video.mp4"], sampling=checkpoint.contract.sampling)
    with torch.no_grad():
        logits = network(preprocess(torch.from_numpy(batch.pixels), checkpoint.contract.preprocessing)[None])
    likelihoods = logits[0].double().log_softmax(dim=1)
    likelihoods[:, [START, END, UNKNOWN]] = -torch.inf
    words = likeliest_words(likelihoods.numpy(), beam_size=3)
    assert row["caption"] == TASKS["ctc"].vocabulary.decode(words)
    losses = ctc_losses(logits, torch.tensor([words]), torch.tensor([logits.shape[1]]))
    assert row["log_probability"] == pytest.approx(-losses.item(), rel=1e-3)


def test_questions_are_asked_of_every_source(capsys, workspace, weights):
    checkpoint = ["--checkpoint", "checkpoints/question_answering"]
    questions = ["--question", "which is it?", "--question", "is it?"]
    loaded = load_checkpoint(workspace / "checkpoints/question_answering")
    (batch,) = read_frames([workspace / "media/clips/video.mp4"], sampling=loaded.contract.sampling)
    frames = preprocess(torch.from_numpy(batch.pixels), loaded.contract.preprocessing)
    words = pad_groups([[loaded.task.vocabulary.encode(text) for text in ("which is it?", "is it?")]])
    network = EndToEnd(loaded.model, contract=loaded.contract, weights=weights).eval()
    with torch.no_grad():
        numbers = network(frames[None], questions=words)[0, :, 1:].argmax(dim=1)
    expected = [("one", "two", "yes")[number] for number in numbers]
    stdout, _ = run(capsys, workspace, "media/clips", *checkpoint, *questions, "--json")
    assert "video.mp4" in stdout
    for result in json.loads(stdout):
        assert [row["question"] for row in result["answers"]] == ["which is it?", "is it?"]
        if result["source"].endswith("video.mp4"):
            assert [row["answer"] for row in result["answers"]] == expected
    _, stderr = run(capsys, workspace, "media/clips", *checkpoint, "--question", "is it blue?")
    assert "The model has not learned: blue." in stderr
    _, stderr = run(capsys, workspace, "media/clips", *checkpoint, status=1)
    assert "error: The model's task is question_answering, which needs questions. Give --question" in stderr
    _, stderr = run(
        capsys, workspace, "media/clips", "--checkpoint", "checkpoints/regression", *questions, status=1
    )
    assert "error: The model's task is regression, which takes no questions." in stderr


def test_a_source_whose_features_or_answers_are_not_finite_is_an_error_and_no_row(capsys, workspace, weights):
    checkpoint = make_checkpoint("regression", weights)
    for parameter in checkpoint.model.parameters():
        parameter.data.fill_(torch.nan)
    save_checkpoint(workspace / "checkpoints/diverged", checkpoint)
    arguments = ["media/clips", "--checkpoint", "checkpoints/diverged", "--json"]
    stdout, stderr = run(capsys, workspace, *arguments, status=1)
    assert "NaN" not in stdout.replace("infinite or NaN", "")
    for result in json.loads(stdout):
        assert set(result) == {"source", "error"}
        assert f"answers for 1 of 1 clips are infinite or NaN: {result['source']}." in result["error"]
    assert "error: 2 of 2 sources could not be read or answered, see above." in stderr

    bright = dataclasses.replace(weights, state={**weights.state})
    bright.state["layer4.1.bn2.weight"] = weights.state["layer4.1.bn2.weight"] * 1e7
    save_weights(bright, path=workspace / "weights/bright.safetensors")
    bright = load_weights(workspace / "weights/bright.safetensors")
    save_checkpoint(workspace / "checkpoints/bright", make_checkpoint("regression", bright))
    arguments = ["media/clips/video.mp4", "--checkpoint", "checkpoints/bright"]
    stdout, stderr = run(capsys, workspace, *arguments, status=1)
    assert stdout == ""
    assert (
        "error: media/clips/video.mp4 has no features: layer4 at 0.000 s has a value of magnitude" in stderr
    )
    assert "and float16 ends at 65504. Choose dtype float32." in stderr
