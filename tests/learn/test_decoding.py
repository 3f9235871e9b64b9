"""Beam search on a toy language in which every sentence can be listed."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.learn.decoding import Sentence, beam_search
from pipeline.learn.models.attention import Memory
from pipeline.learn.models.decoder import State, Step
from pipeline.learn.vocabulary import END, START

NUM_WORDS = 7  # the special ones and three more
REAL = (4, 5, 6)
NUM_CLIPS = 6


@dataclass(frozen=True)
class Toy:
    """The next word depends on the clip, the place and the last word, by tables of logits."""

    tables: Tensor  # (B, S, V, V)

    def first_state(self, memory: Memory) -> State:
        return memory.states[:, 0, 0].long(), torch.zeros(len(memory.states), dtype=torch.int64)

    def step(self, words: Tensor, state: State, memory: Memory) -> Step:  # noqa: ARG002
        clips, places = state
        attention = torch.nn.functional.one_hot(words, NUM_WORDS).float() + clips[:, None]
        return Step(self.tables[clips, places, words], (clips, places + 1), attention)


def make_toy(*, max_words: int, seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy(2 * torch.randn(NUM_CLIPS, max_words, NUM_WORDS, NUM_WORDS))


def memory_of(clips: list[int]) -> Memory:
    numbers = torch.tensor(clips).float()
    return Memory(numbers[:, None, None], torch.ones(len(clips), 1, dtype=torch.bool), numbers[:, None])


def search(toy: Toy, clips: list[int], **options: object) -> list[Sentence]:
    return beam_search(toy, memory_of(clips), **{"max_words": 3, **options})  # type: ignore[arg-type]


def score_by_hand(toy: Toy, clip: int, words: tuple[int, ...], power: float) -> float:
    total, last = 0.0, START
    for place, word in enumerate(words):
        total += float(toy.tables[clip, place, last].log_softmax(dim=0)[word])
        last = word
    return total / len(words) ** power


def all_sentences(max_words: int) -> list[tuple[int, ...]]:
    """Every sentence with an END within max_words words, and every one that is cut there."""
    ended = [(*words, END) for length in range(max_words) for words in itertools.product(REAL, repeat=length)]
    return ended + list(itertools.product(REAL, repeat=max_words))


@pytest.mark.parametrize("power", [0.0, 0.7, 1.0])
def test_a_wide_beam_equals_exhaustive_search(power):
    toy = make_toy(max_words=3)
    found = search(toy, list(range(NUM_CLIPS)), beam_size=64, length_power=power)
    for clip, sentence in enumerate(found):
        best = max(all_sentences(3), key=lambda words: score_by_hand(toy, clip, words, power))
        assert sentence.words == tuple(word for word in best if word != END)
        assert sentence.log_probability == pytest.approx(score_by_hand(toy, clip, best, 0), abs=1e-5)


def test_beam_one_equals_greedy():
    toy = make_toy(max_words=8, seed=1)
    for clip, sentence in enumerate(search(toy, list(range(NUM_CLIPS)), beam_size=1, max_words=8)):
        words, last = [], START
        for place in range(8):
            last = max((*REAL, END), key=lambda word: toy.tables[clip, place, last, word])
            if last == END:
                break
            words.append(last)
        assert sentence.words == tuple(words)


def test_a_beam_finds_what_greedy_misses():
    toy = make_toy(max_words=2)
    toy.tables[0] = -50
    toy.tables[0, 0, START, [4, 5]] = torch.tensor([0.6, 0.4]).log()
    toy.tables[0, 1, 4, [4, 5, 6]] = torch.tensor([0.4, 0.3, 0.3]).log()  # 0.6 * 0.4
    toy.tables[0, 1, 5, 6] = 0  # 0.4 * 1
    assert search(toy, [0], beam_size=1, max_words=2)[0].words == (4, 4)
    assert search(toy, [0], beam_size=2, max_words=2)[0].words == (5, 6)


def test_length_power_chooses_between_short_and_long():
    toy = make_toy(max_words=3)
    toy.tables[0] = -50
    toy.tables[0, 0, START, [END, 4]] = torch.tensor([0.5, 0.5]).log()
    toy.tables[0, 1, 4, [4, END]] = torch.tensor([0.9, 0.1]).log()
    toy.tables[0, 2, 4, END] = 0
    assert search(toy, [0], beam_size=4, length_power=0.0)[0].words == ()
    assert search(toy, [0], beam_size=4, length_power=1.0)[0].words == (4, 4)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_other_clips_of_a_batch_have_no_influence(beam_size):
    toy = make_toy(max_words=8, seed=2)
    together = search(toy, [4, 1, 3, 0], beam_size=beam_size, max_words=8)
    for clip, sentence in zip([4, 1, 3, 0], together, strict=True):
        (alone,) = search(toy, [clip], beam_size=beam_size, max_words=8)
        assert sentence.words == alone.words
        assert sentence.log_probability == pytest.approx(alone.log_probability)
        assert torch.equal(sentence.attention, alone.attention)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_attention_is_that_of_the_words_that_were_chosen(beam_size):
    toy = make_toy(max_words=8, seed=3)
    for clip, sentence in enumerate(search(toy, list(range(NUM_CLIPS)), beam_size=beam_size, max_words=8)):
        read = torch.tensor([START, *sentence.words][: len(sentence.words)], dtype=torch.int64)
        assert torch.equal(sentence.attention, torch.nn.functional.one_hot(read, NUM_WORDS) + float(clip))
