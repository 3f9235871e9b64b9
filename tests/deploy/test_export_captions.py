"""The two files of a captioning model, run by ONNX Runtime and by PyTorch alone, against the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.backbone import Weights
from pipeline.backbone.networks import map_shape
from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.deploy.end_to_end import EndToEnd
from pipeline.deploy.export_captions import MapsToMemory, export_captioner
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.decoding import beam_search
from pipeline.learn.models.attention import Memory
from pipeline.learn.tasks import Captioning
from pipeline.learn.vocabulary import END, START, Vocabulary
from pipeline.settings.words import WordsConfig
from tests.support.checkpoints import open_onnx
from tests.support.configs import live_config
from tests.support.extraction import random_weights

pytestmark = pytest.mark.slow

NUM_FRAMES = 3
TASK = Captioning(Vocabulary.from_texts(["a digit moves up", "two moves left"]), WordsConfig(max_words=6))


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


def make_checkpoint(
    weights: Weights, *, decoder: dict[str, object], network: str = "recurrent", **options: object
) -> Checkpoint:
    contract = FeatureContract(
        sampling=Sampling(),
        preprocessing=Preprocessing(resize=32, crop=32),
        mean=weights.mean,
        std=weights.std,
        arch=weights.arch,
        weights_sha256=weights.sha256,
        tap="layer1",
    )
    small = {"embedding_size": 6, "hidden_size": 8, "num_heads": 2, "dropout": 0.0}
    config = live_config(
        **{
            **{"tap": "layer1", "task": "captioning", "hidden_size": 8, "projection": 4, "num_heads": 2},
            **{"scan": "rows", "pooling": "avg", "decoder": {**small, **decoder}, **options},
        }
    )
    shape = map_shape(weights.arch, "layer1", height=32, width=32)
    model = TASK.build_model(network, config, map_shapes=[shape], seed=3).eval()
    with torch.no_grad():
        model.decoder.head.weight *= 20  # sure of its words, whatever they are
    return Checkpoint(network, model, TASK, config, (contract,), (shape,), {})


def random_frames(num_clips: int, *, num_frames: int = NUM_FRAMES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_clips)
    return torch.randint(0, 256, (num_clips, num_frames, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("decoder", "options", "suffix"),
    [
        ({"cell": "lstm", "inject": "attention"}, {"bidirectional": True}, ".pt2"),
        ({"cell": "gru", "inject": "every_step"}, {}, ".pt2"),
        ({"cell": "transformer", "inject": "attention"}, {"cell": "transformer"}, ".onnx"),
        ({"cell": "transformer", "inject": "start"}, {}, ".pt2"),
        ({"cell": "gru", "inject": "attention", "num_layers": 2}, {"network": "baseline"}, ".onnx"),
    ],
)
def test_the_two_files_say_what_the_model_says_of_clips_of_any_length(
    tmp_path: Path, weights, decoder, options, suffix
):
    checkpoint = make_checkpoint(weights, decoder=decoder, **options)
    path, step_path = tmp_path / f"model{suffix}", tmp_path / f"model.step{suffix}"
    exported = export_captioner(
        checkpoint, weights, path=path, num_frames=NUM_FRAMES, check_with={"noise": random_frames(3)}
    )
    assert max(exported.differences.values()) < 1e-4
    assert sorted(tmp_path.iterdir()) == [path, step_path]

    assert exported.num_frames is None
    said = words_of_files(path, step_path, is_transformer=checkpoint.config.decoder.cell == "transformer")
    model = checkpoint.model
    network = EndToEnd(MapsToMemory(model), contract=checkpoint.contract, weights=weights).eval()
    for num_frames in (1, NUM_FRAMES, 7):
        frames = random_frames(4, num_frames=num_frames)
        with torch.no_grad():
            states, summary, *_ = network(frames)
        memory = Memory(states, torch.ones(states.shape[:2], dtype=torch.bool), summary)
        expected = beam_search(model.decoder, memory, beam_size=1, max_words=6)
        assert said(frames) == [list(sentence.words) for sentence in expected]


def words_of_files(
    path: Path, step_path: Path, *, is_transformer: bool
) -> Callable[[torch.Tensor], list[list[int]]]:
    """What the two files say of frames (4, T, 3, H, W): six words of each clip, up to <end>."""
    suffix = path.suffix
    if suffix == ".onnx":
        look, speak = (open_onnx(file) for file in (path, step_path))
        metadata = json.loads(speak.get_modelmeta().custom_metadata_map["framecache.json"])
        assert metadata["task"]["vocabulary"] == list(TASK.vocabulary.words)
    else:
        look, speak = (torch.export.load(file).module() for file in (path, step_path))

    def first(frames: torch.Tensor) -> dict[Any, Any]:
        if suffix == ".pt2":
            return dict(enumerate(look(frames)))
        names = [node.name for node in look.get_outputs()]
        return dict(zip(names, look.run(None, {"frames": frames.numpy()}), strict=True))

    def say(frames: torch.Tensor) -> list[list[int]]:
        kept = first(frames)
        words = torch.full((4, 1), START)
        for _ in range(6):
            given = words if is_transformer else words[:, -1]
            if suffix == ".onnx":
                outputs = speak.run(None, {"words": given.numpy(), **kept})
                for node, value in zip(speak.get_outputs(), outputs, strict=True):
                    if node.name.startswith("new_"):
                        kept[node.name.removeprefix("new_")] = value
                probabilities = torch.from_numpy(outputs[0])
            else:
                probabilities, _, *state = speak(given, *kept.values())
                kept.update(dict(enumerate(state, start=2)))
            probabilities[:, [0, 1, 3]] = 0  # as in beam_search: no <pad>, <start>, <unknown>
            words = torch.cat([words, probabilities.argmax(dim=1, keepdim=True)], dim=1)
        rows = words[:, 1:].tolist()
        return [row[: row.index(END)] if END in row else row for row in rows]

    return say
