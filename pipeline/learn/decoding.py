"""Decoding: beam search finds the words for an encoded clip, one after the other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.learn.models.attention import Memory
from pipeline.learn.models.decoder import Decoder
from pipeline.learn.vocabulary import END, PAD, START, UNKNOWN, until_end


@dataclass(frozen=True)
class Sentence:
    """A decoded sentence."""

    words: tuple[int, ...]  # without END
    log_probability: float  # of the words and their END
    attention: Tensor  # (S, L) on the CPU: of each word, to the clip's states; (S, 0) without attention


@torch.inference_mode()
def beam_search(
    decoder: Decoder, memory: Memory, *, beam_size: int, max_words: int, length_power: float = 0.0
) -> list[Sentence]:
    """The best sentence found for each clip of the memory; with `beam_size` 1, greedy decoding.

    In every step the `beam_size` best beginnings of each clip's sentences are kept, including finished ones.
    They are compared by log-probability / length ** length_power, where the length counts END. A power of 0
    compares probabilities, which favours short sentences; 1 compares the mean log-probability of a word (Wu
    et al. 2016, arXiv 1609.08144, section 7, have another formula for this). A sentence without END after
    `max_words` words is cut there. Other clips of the batch and padding have no influence.
    """
    num_clips, device = len(memory.states), memory.states.device
    memory = memory.repeat(beam_size)
    state = decoder.first_state(memory)
    words = torch.full((num_clips * beam_size, 1), START, device=device)  # (B * K, S): all so far
    attention: list[Tensor] = []  # S of (B * K, L)
    # At first all beams of a clip are the same beginning: only one of them is continued.
    totals = memory.states.new_full((num_clips, beam_size), -torch.inf)
    totals[:, 0] = 0
    lengths = torch.zeros(num_clips, beam_size, device=device)
    for length in range(1, max_words + 1):
        finished = words[:, -1:].eq(END) | words[:, -1:].eq(PAD)  # (B * K, 1)
        step = decoder.step(words[:, -1], state, memory)
        gains = step.logits.log_softmax(dim=1)  # (B * K, V)
        gains[:, [PAD, START, UNKNOWN]] = -torch.inf
        # A finished sentence continues with padding, at no cost.
        gains = gains.masked_fill(finished, -torch.inf)
        gains[:, PAD] = gains[:, PAD].masked_fill(finished[:, 0], 0)
        candidates = totals[:, :, None] + gains.view(num_clips, beam_size, -1)  # (B, K, V)
        new_lengths = torch.where(finished.view_as(lengths), lengths, length)  # (B, K)
        scores = candidates / new_lengths[..., None] ** length_power
        best = scores.flatten(1).topk(beam_size, dim=1).indices  # (B, K): beam * V + word
        beams = best // gains.shape[1]
        totals = candidates.flatten(1).gather(1, best)
        lengths = new_lengths.gather(1, beams)
        rows = (beams + torch.arange(num_clips, device=device)[:, None] * beam_size).flatten()  # (B * K,)
        words = torch.cat([words[rows], (best % gains.shape[1]).view(-1, 1)], dim=1)
        attention = [weights[rows] for weights in (*attention, step.attention)]
        state = tuple(tensor[rows] for tensor in step.state)
        if (words[:, -1].eq(END) | words[:, -1].eq(PAD)).all():
            break
    # topk sorts: a clip's first beam is its best.
    sentences = [until_end(numbers) for numbers in words[::beam_size, 1:].tolist()]
    looks = torch.stack([weights[::beam_size] for weights in attention], dim=1).cpu()  # (B, S, L)
    return [
        Sentence(tuple(numbers), total, look[: len(numbers)])
        for numbers, total, look in zip(sentences, totals[:, 0].tolist(), looks, strict=True)
    ]
