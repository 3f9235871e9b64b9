"""CTC: likelihoods and words against all ways in which frames can say them."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.errors import TooFewFramesError
from pipeline.learn.answering import answer_batches
from pipeline.learn.ctc import ctc_losses, frames_needed, likeliest_words
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.streaming import Batch, Loader
from pipeline.learn.tasks import Ctc
from pipeline.learn.vocabulary import END, PAD, START, UNKNOWN
from tests.support.configs import live_config
from tests.support.toy import make_clip, make_features, random_maps


def said_by(path: tuple[int, ...]) -> tuple[int, ...]:
    """The words of frames that say these: equal neighbours are one word, PAD is none."""
    return tuple(word for word, _ in itertools.groupby(path) if word != PAD)


def all_likelihoods(likelihoods: np.ndarray) -> dict[tuple[int, ...], float]:
    """The log-likelihood of each sequence of words: the sum over all paths (T,) of words that say it."""
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(likelihoods.shape[1]), repeat=len(likelihoods)):
        total = sum(likelihoods[frame, word] for frame, word in enumerate(path))
        words = said_by(path)
        sums[words] = np.logaddexp(sums.get(words, -np.inf), total)
    return sums


def random_logits(num_frames: int, num_words: int, *, seed: int) -> torch.Tensor:
    return 2 * torch.randn(num_frames, num_words, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
def test_losses_and_beams_are_those_of_all_paths(seed):
    num_frames, num_words = 1 + seed % 5, 2 + seed % 3
    logits = random_logits(num_frames, num_words, seed=seed)
    likelihoods = logits.double().log_softmax(dim=1).numpy()
    sums = all_likelihoods(likelihoods)
    for words, total in sums.items():
        targets = torch.tensor([[*words, PAD]])
        padded = torch.cat([logits, torch.full((3, num_words), 9.0)])  # frames after the clip's end
        loss = ctc_losses(padded[None], targets, torch.tensor([num_frames]))
        assert loss.item() == pytest.approx(-total, rel=1e-4)
        assert frames_needed(words) <= num_frames
    best = max(sums, key=sums.__getitem__)
    assert tuple(likeliest_words(likelihoods, beam_size=1000)) == best
    path = tuple(likelihoods.argmax(axis=1).tolist())
    assert tuple(likeliest_words(likelihoods, beam_size=1)) == said_by(path)


def test_a_beam_adds_up_the_ways_to_say_a_word():
    # Silence is the likeliest path (0.36), but three paths say the word (0.64).
    likelihoods = np.log(np.array([[0.6, 0.4], [0.6, 0.4]]))
    assert likeliest_words(likelihoods, beam_size=1) == []
    assert likeliest_words(likelihoods, beam_size=2) == [1]


def make_batch(captions: list[str], *, lengths: list[int]) -> Batch:
    maps = random_maps(lengths, (2, 1, 1))
    clips = [make_clip(clip_id, captions=(text,)) for clip_id, text in zip(maps, captions, strict=True)]
    (batch,) = Loader(make_features(maps), clips, len(clips), 1).epoch()
    return batch


def make_task(batch: Batch, **words: object) -> Ctc:
    return Ctc.from_clips(batch.clips, live_config(task="ctc", words=words))


def test_the_loss_is_the_mean_over_words_of_torchs():
    batch = make_batch(["a b a", "b b"], lengths=[6, 4])
    task = make_task(batch)
    a, b = (task.vocabulary.words.index(word) for word in "ab")
    targets = task.targets(batch)
    assert targets.tolist() == [[a, b, a, PAD, PAD, PAD], [b, b, PAD, PAD, UNLABELLED, UNLABELLED]]
    logits = random_logits(12, task.num_outputs, seed=0).view(2, 6, -1)
    expected = [
        torch.nn.functional.ctc_loss(
            row[:length].log_softmax(dim=1), torch.tensor(words), (length,), (len(words),), reduction="sum"
        )
        for row, length, words in zip(logits, [6, 4], [[a, b, a], [b, b]], strict=True)
    ]
    assert task.loss(logits, targets).item() == pytest.approx(sum(expected).item() / 5, rel=1e-6)
    assert task.metrics(*task.keep_rows(logits, targets))["loss"] == pytest.approx(sum(expected).item() / 5)


@pytest.mark.parametrize(("caption", "length", "needed"), [("a b a", 2, 3), ("a a", 2, 3), ("a a a", 4, 5)])
def test_too_few_frames_are_an_error_that_names_the_clip(caption, length, needed):
    batch = make_batch([caption], lengths=[length])
    with pytest.raises(TooFewFramesError, match=f"'c0' has {length} frames, and its caption needs {needed}"):
        make_task(batch).targets(batch)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_an_answer_has_no_special_words_and_the_probability_of_all_its_paths(beam_size):
    batch = make_batch(["a b", "a"], lengths=[3, 3])
    task = make_task(batch, beam_size=beam_size)
    a, b = (task.vocabulary.words.index(word) for word in "ab")
    logits = torch.zeros(3, task.num_outputs)
    for frame, (special, word) in enumerate([(START, a), (END, b), (UNKNOWN, b)]):
        logits[frame, special], logits[frame, word] = 5.0, 4.0
    (row,) = task.render(logits, torch.arange(3.0))
    assert row["caption"] == "a b"
    sums = all_likelihoods(logits.double().log_softmax(dim=1).numpy())
    assert row["log_probability"] == pytest.approx(sums[a, b], rel=1e-4)


def test_frames_that_say_nothing_are_an_empty_caption():
    batch = make_batch(["a b"], lengths=[3])
    task = make_task(batch)
    logits = torch.zeros(3, task.num_outputs)
    logits[:, PAD] = 3.0
    (row,) = task.render(logits, torch.arange(3.0))
    assert row["caption"] == ""
    assert row["log_probability"] == pytest.approx(3 * logits[0].log_softmax(dim=0)[PAD].item(), rel=1e-5)


def test_metrics_count_the_words_that_are_wrong():
    batch = make_batch(["a b a", "b", "a a"], lengths=[6, 4, 6])
    task = make_task(batch)
    a, b = (task.vocabulary.words.index(word) for word in "ab")
    # Right; one word is missing; there are two too many.
    said = [[a, a, b, PAD, a, PAD], [PAD] * 4, [a, PAD, b, PAD, b, a]]

    class Sure(torch.nn.Module):
        def forward(self, maps, _lengths):
            rows = [[*words, *[PAD] * (maps.shape[1] - len(words))] for words in said]
            return 20 * torch.nn.functional.one_hot(torch.tensor(rows), task.num_outputs).float()

    predictions = answer_batches(Sure(), [batch], task=task, device=torch.device("cpu"))
    measured = task.measure(predictions)
    metrics = measured(np.ones(3))
    assert metrics["word_error_rate"] == (0 + 1 + 2) / 6
    assert metrics["exact_match"] == 1 / 3
    assert metrics.keys() == task.facts.monitors.keys()
    assert measured(np.array([2, 1, 0]))["word_error_rate"] == 1 / 7
    table = task.tabulate(predictions)
    assert table["answer"].to_pylist() == ["a b a", "", "a b b a"]
    assert table["loss_weight"].to_pylist() == [3, 1, 2]
    assert np.average(table["loss"], weights=table["loss_weight"]) == pytest.approx(metrics["loss"])
