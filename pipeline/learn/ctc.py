"""CTC: words that a clip's frames say without times, as in Graves et al. 2006.

A frame says a word, or nothing: the blank, whose number is PAD. The words of a clip are those of its frames,
in order. Neighbouring frames with the same word say it once, unless there is a blank between them.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor
from torch.nn import functional

from pipeline.learn.vocabulary import PAD


def ctc_losses(logits: Tensor, words: Tensor, num_frames: Tensor) -> Tensor:
    """Negative log-likelihoods (B,) of words (B, S), PAD after the last, by logits (B, T, V).

    The first `num_frames` (B,) frames of each row are valid. A loss is infinite where they are fewer than
    `frames_needed`. Losses are computed on the CPU, and stay there: torch's kernel for GPUs is not
    deterministic.
    """
    likelihoods = logits.float().cpu().log_softmax(dim=-1).transpose(0, 1)  # (T, B, V)
    words = words.cpu()
    return functional.ctc_loss(
        likelihoods, words, num_frames.cpu(), (words != PAD).sum(dim=1), blank=PAD, reduction="none"
    )


def frames_needed(words: Sequence[int]) -> int:
    """The fewest frames that can say these words: one a word, and a blank between equal ones."""
    return len(words) + sum(one == other for one, other in pairwise(words))


def likeliest_words(likelihoods: np.ndarray, *, beam_size: int) -> list[int]:
    """The words that frames say, by the log-likelihoods (T, V) of a word at each frame.

    With `beam_size` 1 they are those of the likeliest word of each frame (best path decoding). Otherwise the
    likelihoods of all ways to say the same words are added: after each frame, the `beam_size` likeliest
    beginnings are kept (prefix beam search, Graves 2012, section 7.5.3).
    """
    if beam_size == 1:
        best = likelihoods.argmax(axis=1)
        changes = np.diff(best, prepend=PAD) != 0
        words: list[int] = best[changes & (best != PAD)].tolist()
        return words
    beginnings: list[tuple[int, ...]] = [()]
    # Log-likelihoods (N,) of the beginnings: by frames that end in a blank, and in a beginning's last word.
    by_blank, by_word = np.array([0.0]), np.array([-np.inf])
    for frame in likelihoods:
        last = np.array([words[-1] if words else PAD for words in beginnings])
        both = np.logaddexp(by_blank, by_word)
        longer = both[:, None] + frame  # (N, V): one word more
        longer[np.arange(len(last)), last] = by_blank + frame[last]  # a word again, after a blank
        by_word = np.where(last == PAD, -np.inf, by_word + frame[last])
        by_blank = both + frame[PAD]
        places = {words: place for place, words in enumerate(beginnings)}
        for place, beginning in enumerate(beginnings):
            shorter = places.get(beginning[:-1]) if beginning else None
            if shorter is not None:  # which a word more makes this one
                word = beginning[-1]
                by_word[place] = np.logaddexp(by_word[place], longer[shorter, word])
                longer[shorter, word] = -np.inf
        totals = longer.copy()
        totals[:, PAD] = np.logaddexp(by_blank, by_word)  # no word more
        best = np.argsort(-totals, axis=None, kind="stable")[:beam_size]
        best = best[totals.flat[best] > -np.inf]
        rows, added = np.unravel_index(best, totals.shape)
        stays = added == PAD
        by_word = np.where(stays, by_word[rows], longer[rows, added])
        by_blank = np.where(stays, by_blank[rows], -np.inf)
        beginnings = [
            beginnings[row] if word == PAD else (*beginnings[row], word)
            for row, word in zip(rows.tolist(), added.tolist(), strict=True)
        ]
    return list(beginnings[0])
