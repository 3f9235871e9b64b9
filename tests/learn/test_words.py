"""Captions: what is trained, what a model says by itself, and which number is called what."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ManifestError, ShapeError
from pipeline.learn.answering import answer_batches
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.streaming import Batch, Loader
from pipeline.learn.tasks import Captioning, FrameWords, Predictions
from pipeline.learn.vocabulary import END, PAD, START, UNKNOWN, Vocabulary
from pipeline.manifest import Clip
from pipeline.settings.training import TrainConfig
from pipeline.settings.words import WordsConfig
from tests.support.configs import live_config
from tests.support.toy import make_clip, make_features, order_task, random_maps

CPU = torch.device("cpu")
SMALL = {"hidden_size": 8, "projection": 4, "dropout": 0.0}


def measured(task: Captioning | FrameWords, predictions: Predictions) -> dict[str, float]:
    return task.measure(predictions)(np.ones(len(predictions.clips)))


def make_config(
    *, task: str = "captioning", decoder: dict[str, object] | None = None, **fields: object
) -> TrainConfig:
    small = {"embedding_size": 6, "hidden_size": 8, "num_heads": 2, "dropout": 0.0}
    return live_config(
        **{"task": task, **SMALL, "num_heads": 2, **fields, "decoder": {**small, **(decoder or {})}}
    )


def make_batch(captions: list[tuple[str, ...]], *, lengths: list[int]) -> Batch:
    maps = random_maps(lengths, (2, 2, 3))
    clips = [make_clip(clip_id, captions=texts) for clip_id, texts in zip(maps, captions, strict=True)]
    (batch,) = Loader(make_features(maps), clips, len(clips), 1).epoch()
    return batch


CAPTIONS = [("a b c", "b a"), ("c",), ("a a b c", "c b", "b")]
LENGTHS = [3, 5, 6]


def make_captioner(config: TrainConfig) -> tuple[Captioning, CaptionModel]:
    task = Captioning.from_clips(make_batch(CAPTIONS, lengths=LENGTHS).clips, config)
    model = task.build_model("recurrent", config, map_shapes=[(2, 2, 3)])
    assert isinstance(model, CaptionModel)
    return task, model.eval()


def test_every_caption_of_a_clip_is_a_target_with_its_end():
    task, _ = make_captioner(make_config())
    a, b, c = (task.vocabulary.words.index(word) for word in "abc")
    targets = task.targets(make_batch(CAPTIONS, lengths=LENGTHS))
    assert targets.tolist() == [
        [[a, b, c, END, PAD], [b, a, END, PAD, PAD], [PAD] * 5],
        [[c, END, PAD, PAD, PAD], [PAD] * 5, [PAD] * 5],
        [[a, a, b, c, END], [c, b, END, PAD, PAD], [b, END, PAD, PAD, PAD]],
    ]


@pytest.mark.parametrize("inject", ["start", "attention"])
def test_the_loss_is_that_of_each_caption_of_each_clip_alone(inject):
    task, model = make_captioner(make_config(decoder={"inject": inject}))
    batch = make_batch(CAPTIONS, lengths=LENGTHS)
    by_hand = []
    for row, length in enumerate(LENGTHS):
        memory = model.remember(batch.maps[row : row + 1, :length], None)
        for text in CAPTIONS[row]:
            state, read = model.decoder.first_state(memory), START
            for word in task.vocabulary.encode(text):
                logits, state, _ = model.decoder.step(torch.tensor([read]), state, memory)
                by_hand.append(-logits[0].log_softmax(dim=0)[word].item())
                read = word
    outputs, targets = task.run_model(model, batch), task.targets(batch)
    assert task.loss(outputs, targets).item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    metrics = task.metrics(*task.keep_rows(outputs.detach(), targets))
    assert metrics["loss"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(np.mean(by_hand)), rel=1e-5)


def test_the_penalty_of_attention_is_added_to_the_loss():
    config = make_config(decoder={"doubly_stochastic": 0.5})
    task, model = make_captioner(config)
    batch = make_batch([("a b",), ("c a",)], lengths=[3, 2])
    reading = model(batch.maps, batch.lengths, task.targets(batch))
    penalties = []
    for row, length in enumerate([3, 2]):
        received = reading.attention[row, 0, :, :length].sum(dim=0)  # 2 words and the end
        penalties.append((1 - received).square().mean().item())
    plain = -task.run_model(model, batch)[..., 0].mean().item()
    loss = task.loss(task.run_model(model, batch), task.targets(batch))
    assert loss.item() == pytest.approx(plain + 0.5 * np.mean(penalties), rel=1e-5)


def learn(task: Captioning | FrameWords, model: nn.Module, loader: Loader, *, num_steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    (batch,) = loader.epoch()
    for _ in range(num_steps):
        loss = task.loss(task.run_model(model, batch), task.targets(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def order_captions(
    num_clips: int, *, split: str = "train", seed: int = 0
) -> tuple[list[Clip], dict[str, np.ndarray]]:
    """The captions say which channel's spike comes first; some go on."""
    clips, maps = order_task(num_clips, split=split, seed=seed)
    texts = {"first": "one, then the other", "second": "the other"}
    return [dataclasses.replace(clip, captions=(texts[str(clip.label)],)) for clip in clips], maps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "decoder"),
    [
        ("lstm", {"inject": "start"}),
        ("lstm", {"inject": "every_step", "cell": "gru", "scheduled_sampling": 0.3}),
        ("gru", {"inject": "attention", "doubly_stochastic": 0.1}),
        ("transformer", {"inject": "attention", "cell": "transformer"}),
        ("rnn", {"inject": "start", "cell": "transformer"}),
    ],
)
def test_models_learn_to_say_what_comes_first(cell, decoder):
    config = make_config(
        cell=cell, hidden_size=16, bidirectional=True, projection=None, summary="mean", decoder=decoder
    )
    train_clips, train_maps = order_captions(64)
    test_clips, test_maps = order_captions(32, split="test", seed=1)
    features = make_features(train_maps | test_maps)
    task = Captioning.from_clips(train_clips, config)
    model = task.build_model("recurrent", config, map_shapes=[(2, 1, 1)])
    learn(task, model, Loader(features, train_clips, 64, 1), num_steps=80)
    predictions = answer_batches(model, Loader(features, test_clips, 32, 1).epoch(), task=task, device=CPU)
    metrics = measured(task, predictions)
    assert metrics["exact_match"] > 0.85
    in_other_orders = [
        answer_batches(
            model, Loader(features, test_clips, 32, 1).epoch(), task=task, device=CPU, shuffle_seed=seed
        )
        for seed in range(4)
    ]
    assert np.mean([measured(task, shuffled)["exact_match"] for shuffled in in_other_orders]) < 0.75


def test_words_read_off_the_frames_say_it_too():
    config = make_config(task="frame_words", hidden_size=16, projection=None)
    train_clips, train_maps = order_captions(64)
    train_clips = [
        dataclasses.replace(clip, captions=(clip.captions[0].replace(", then", ""),)) for clip in train_clips
    ]
    features = make_features(train_maps)
    task = FrameWords.from_clips(train_clips, config)
    model = task.build_model("recurrent", config, map_shapes=[(2, 1, 1)])
    learn(task, model, Loader(features, train_clips, 64, 1), num_steps=80)
    predictions = answer_batches(model, Loader(features, train_clips, 32, 1).epoch(), task=task, device=CPU)
    assert measured(task, predictions)["exact_match"] > 0.95


@pytest.mark.parametrize("name", ["recurrent", "baseline"])
@pytest.mark.parametrize(
    ("scan", "cell", "steps"), [("frames", "lstm", 1), ("locations", "none", 6), ("rows", "transformer", 2)]
)
def test_a_clip_gets_the_same_caption_whatever_its_batch(name, scan, cell, steps):
    config = make_config(scan=scan, cell=cell, summary="mean", words={"beam_size": 2, "max_words": 7})
    task, _ = make_captioner(config)
    model = task.build_model(name, config, map_shapes=[(2, 2, 3)]).eval()
    batch = make_batch(CAPTIONS, lengths=LENGTHS)
    batch.maps[0, 3:] = torch.nan
    together = task.answers(model, batch)
    for row, length in enumerate(LENGTHS):
        alone = dataclasses.replace(
            batch,
            clips=batch.clips[row : row + 1],
            maps=batch.maps[row : row + 1, :length],
            lengths=batch.lengths[row : row + 1],
        )
        (caption,) = task.answers(model, alone)
        assert caption.text == together[row].text
        torch.testing.assert_close(caption.scores, together[row].scores)
        if name == "recurrent":
            assert caption.attention.shape == (len(caption.words), length, steps)
            torch.testing.assert_close(caption.attention, together[row].attention)
        else:
            assert caption.attention is None


def test_metrics_are_of_what_the_model_says_and_teacher_forcing_is_called_so():
    task, model = make_captioner(make_config())
    batch = make_batch(CAPTIONS, lengths=LENGTHS)
    predictions = answer_batches(model, [batch], task=task, device=CPU)
    said = [caption.text for caption in predictions.outputs]
    found = measured(task, predictions)
    hits = [text in texts for text, texts in zip(said, CAPTIONS, strict=True)]
    assert found["exact_match"] == np.mean(hits)
    trained = task.metrics(*task.keep_rows(task.run_model(model, batch).detach(), task.targets(batch)))
    assert set(trained) == {"loss", "perplexity", "teacher_forced_accuracy"}
    assert set(task.facts.monitors) <= set(found)
    assert not {"teacher_forced_accuracy"} & set(found)
    assert found["loss"] == pytest.approx(trained["loss"])
    # A perfect reader that says nothing by itself has no right caption.
    silent = [dataclasses.replace(caption, text="") for caption in predictions.outputs]
    silence = measured(task, dataclasses.replace(predictions, outputs=tuple(silent)))
    assert silence["exact_match"] == silence["bleu_1"] == silence["token_accuracy"] == 0


def test_a_clip_without_captions_is_described_all_the_same():
    task, model = make_captioner(make_config())
    batch = make_batch([(), ()], lengths=[2, 4])
    (caption, _) = answer_batches(model, [batch], task=task, device=CPU, labelled=False).outputs
    (row,) = task.render(caption, torch.zeros(2))
    assert row["caption"] == caption.text
    assert row["log_probability"] == caption.sentence.log_probability


def test_a_task_reads_back_from_its_description():
    for kind in (Captioning, FrameWords):
        task = kind.from_clips(
            make_batch(CAPTIONS, lengths=LENGTHS).clips, make_config(words={"beam_size": 3, "min_count": 2})
        )
        assert kind.from_description(task.describe()) == task


def test_unknown_words_are_counted_and_named(caplog):
    clips = [make_clip("x", captions=("a b b", "c c d"))]
    with caplog.at_level(logging.WARNING):
        task = Captioning.from_clips(clips, make_config(words={"min_count": 2}))
        task.check([make_clip("y", split="val", captions=("b x", "y x"))])
    first, second = (record.getMessage() for record in caplog.records)
    assert "1 train clips have 2 words that are not among the vocabulary's 6: a, d." in first
    assert "1 val clips have 3 words" in second
    assert "x, y." in second
    assert task.vocabulary.encode("a c")[0] == UNKNOWN


def test_a_word_a_frame_and_then_an_end():
    clips = make_batch([("a b",), ("c",)], lengths=[5, 2])
    task = FrameWords.from_clips(clips.clips, make_config(task="frame_words"))
    a, b, c = (task.vocabulary.words.index(word) for word in "abc")
    assert task.targets(clips).tolist() == [
        [a, b, END, UNLABELLED, UNLABELLED],
        [c, END, UNLABELLED, UNLABELLED, UNLABELLED],
    ]


def test_more_words_than_frames_are_an_error_that_names_the_clip():
    batch = make_batch([("a b c",)], lengths=[3])
    task = FrameWords.from_clips(batch.clips, make_config(task="frame_words"))
    with pytest.raises(ManifestError, match="'c0' has 3 frames, and its caption with an end 4 words"):
        task.targets(batch)


def test_a_missing_caption_is_an_error_that_names_the_clip():
    with pytest.raises(ManifestError, match="Clip 'b' has no caption"):
        Captioning.from_clips([make_clip("a", captions=("x",)), make_clip("b")], make_config())


def test_scheduled_sampling_grows_with_training_steps_and_rests_in_evaluation():
    decoder = {"scheduled_sampling": 0.4, "scheduled_sampling_steps": 4}
    _, model = make_captioner(make_config(decoder=decoder))
    assert model._sampled_share() == 0
    model.train()
    assert [model._sampled_share() for _ in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    resumed = make_captioner(make_config(decoder=decoder))[1].train()
    resumed.load_state_dict(model.state_dict())
    assert resumed._sampled_share() == 0.4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": {"cell": "transformer", "hidden_size": 9}}, "hidden_size 9 must be even"),
        ({"cell": "transformer", "hidden_size": 6, "num_heads": 4}, "multiple of num_heads 4"),
        ({"decoder": {"inject": "end"}}, "inject"),
        ({"words": {"beam_size": 0}}, "beam_size"),
    ],
)
def test_impossible_parameters_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_config(**fields)


def test_words_read_off_shuffled_frames_stay_in_their_places():
    batch = make_batch([("a b c",), ("b",)], lengths=[6, 4])
    task = FrameWords.from_clips(batch.clips, make_config(task="frame_words"))
    logits = torch.randn(6, task.num_outputs)

    class Blind(nn.Module):
        """Says the same whatever it is shown."""

        def forward(self, maps, _lengths):
            return logits[: maps.shape[1]].expand(len(maps), -1, -1)

    for seed in (None, 0):
        predictions = answer_batches(Blind(), [batch], task=task, device=CPU, shuffle_seed=seed)
        for output in predictions.outputs:
            torch.testing.assert_close(output, logits[: len(output)])


def test_words_read_off_the_frames_are_never_special_ones():
    batch = make_batch([("a b",)], lengths=[4])
    task = FrameWords.from_clips(batch.clips, make_config(task="frame_words"))
    a, b = (task.vocabulary.words.index(word) for word in "ab")
    logits = torch.zeros(4, task.num_outputs)
    for frame, (special, word) in enumerate([(UNKNOWN, a), (PAD, b), (START, END), (END, a)]):
        logits[frame, special], logits[frame, word] = 3.0, 2.0
    assert task.render(logits, torch.arange(4.0)) == [{"caption": "a b"}]


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(ManifestError, match=r"occurs 9 times, .* Lower words\.min_count"):
        Captioning.from_clips([make_clip("a", captions=("x y",))], make_config(words={"min_count": 9}))


def test_the_perplexity_of_a_loss_that_no_float_can_hold_is_infinite():
    metrics = Captioning(Vocabulary.from_texts(["a"]), WordsConfig()).metrics(
        torch.tensor([[-800.0, 0.0, 0.0]]), torch.tensor([4])
    )
    assert metrics["perplexity"] == math.inf


def test_captions_of_another_shape_are_refused_with_what_is_expected():
    _, model = make_captioner(make_config())
    memory = model.remember(make_batch(CAPTIONS[:2], lengths=[3, 3]).maps)
    expected = r"Captions have shape \(2, 4\), but .* \(B, R, S\) = \(2 clips, captions of a clip, words\)\."
    with pytest.raises(ShapeError, match=rf"{expected} Add the axis .* sentences\[:, None\]"):
        model.read(memory, torch.full((2, 4), END))
    with pytest.raises(
        ShapeError, match=r"\(3, 1, 4\), .* = \(2 clips, .* Give each clip of the batch its own"
    ):
        model.read(memory, torch.full((3, 1, 4), END))
