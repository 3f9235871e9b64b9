"""Decoders: from an encoded clip and the words so far to the next word."""

import math
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pipeline.learn.models.attention import AdditiveAttention, Memory
from pipeline.learn.models.draws import Dropout
from pipeline.learn.models.recurrence import Net, Recurrence
from pipeline.learn.vocabulary import PAD, START
from pipeline.settings.words import DecoderConfig

State = tuple[Tensor, ...]  # a decoder's memory of the words so far; each (B, ...)


class Step(NamedTuple):
    """A decoder's outputs after a word."""

    logits: Tensor  # (B, V): of the next word
    state: State
    attention: Tensor  # (B, L): weights of the clip's states; (B, 0) without attention


class Decoder(Protocol):
    """A network that continues sentences."""

    keeps_words: ClassVar[bool]  # its state is the words so far, which it reads again at each step

    def first_state(self, memory: Memory) -> State:
        """The state before the first word, which is START."""
        ...

    def step(self, words: Tensor, state: State, memory: Memory) -> Step:
        """Read the next word (B,) int64 of each sentence."""
        ...

    def __call__(self, memory: Memory, words: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) and attention (B, S, L) after each of the words (B, S) int64."""
        ...


class RecurrentDecoder(nn.Module):
    """An LSTM, GRU or plain RNN over words.

    `inject` says how the clip enters:
    - start: its summary is the first input, before any word (Show and Tell, Vinyals et al. 2015, arXiv
      1411.4555);
    - every_step: its summary stands beside every word (LRCN, Donahue et al. 2015, arXiv 1411.4389);
    - attention: soft attention reads its states at every word, the initial state comes from its summary,
      and the output layer is deep (Show, Attend and Tell, Xu et al. 2015, arXiv 1502.03044). The paper's
      gate on the context is left out: it closes in the first steps of training, while the context still
      carries no information, and then no gradient reaches the clip.
    """

    keeps_words: ClassVar[bool] = False

    def __init__(
        self,
        net: Net,
        config: DecoderConfig,
        *,
        num_words: int,
        memory_size: int,
        summary_size: int,
    ) -> None:
        super().__init__()
        size, hidden = config.embedding_size, config.hidden_size
        self.inject = config.inject
        self.embedding = nn.Embedding(num_words, size, padding_idx=PAD)
        self.dropout = Dropout(config.dropout)
        input_size = {"start": size, "every_step": 2 * size, "attention": size + memory_size}[config.inject]
        self.recurrence = Recurrence(
            net, input_size, hidden, num_layers=config.num_layers, dropout=config.dropout
        )
        self.state_shape = (2 if net is nn.LSTM else 1, config.num_layers, hidden)
        self.from_summary: nn.Module
        if config.inject == "attention":
            self.initial = nn.Linear(summary_size, math.prod(self.state_shape))
            self.attention = AdditiveAttention(memory_size=memory_size, query_size=hidden, size=hidden)
            self.deep_output = nn.Linear(hidden + memory_size, size)
            self.head = nn.Linear(size, num_words)
        else:
            self.from_summary = nn.Linear(summary_size, size)
            self.head = nn.Linear(hidden, num_words)
        if config.inject == "start":
            # The clip enters once: it must be as large as words are, and be kept until a word needs it.
            self.from_summary = nn.Sequential(self.from_summary, nn.LayerNorm(size))
            for layer in self.recurrence.layers:
                if isinstance(layer, nn.LSTM):
                    _open_forget_gates(layer)

    def first_state(self, memory: Memory) -> State:
        """(h, c) or (h,), each (B, layers, H); then the tensor of the clip that every step reads, if any."""
        shape = (memory.summary.shape[0], *self.state_shape)
        if self.inject == "attention":
            initial = torch.tanh(self.initial(memory.summary)).view(shape)
            return (*initial.unbind(dim=1), self.attention.to_keys(memory.states))
        clip = self.from_summary(memory.summary)  # (B, embedding)
        zeros = clip.new_zeros(shape).unbind(dim=1)
        if self.inject == "every_step":
            return (*zeros, clip)
        return self._advance(clip, zeros)[1]

    def step(self, words: Tensor, state: State, memory: Memory) -> Step:
        """Read the next word (B,) int64 of each sentence."""
        embedded = self.dropout(self.embedding(words))  # (B, embedding)
        num_states = self.state_shape[0]
        states, fixed = state[:num_states], state[num_states:]
        if self.inject == "attention":
            query = states[0][:, -1]  # (B, H): of the last layer
            context, weights = self.attention(memory, fixed[0], query)  # (B, E), (B, L)
            hidden, states = self._advance(torch.cat([embedded, context], dim=1), states)
            deep = embedded + self.deep_output(torch.cat([hidden, context], dim=1))  # (B, embedding)
            return Step(self.head(self.dropout(deep)), (*states, *fixed), weights)
        inputs = torch.cat([embedded, *fixed], dim=1)
        hidden, states = self._advance(inputs, states)
        return Step(self.head(self.dropout(hidden)), (*states, *fixed), embedded.new_empty(words.shape[0], 0))

    def forward(self, memory: Memory, words: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) and attention (B, S, L) after each of the words (B, S) int64."""
        return unroll(self, memory, words)

    def _advance(self, inputs: Tensor, states: State) -> tuple[Tensor, State]:
        """One step (B, input) -> the last layer's output (B, H) and the new states (B, layers, H)."""
        before = tuple(state.transpose(0, 1).contiguous() for state in states)  # (layers, B, H)
        outputs, after = self.recurrence(inputs[:, None], before)
        return outputs[:, 0], tuple(state.transpose(0, 1) for state in after)


def _open_forget_gates(lstm: nn.LSTM) -> None:
    """Set biases to 1: a state then keeps three quarters of itself, not half (Jozefowicz et al. 2015)."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_ih"):  # (4 H,): input, forget, cell and output gates
            nn.init.ones_(bias.data[lstm.hidden_size : 2 * lstm.hidden_size])


def teacher_words(sentences: Tensor) -> Tensor:
    """The words (M, S) that a decoder reads to say sentences (M, S) with their END: START goes first."""
    return torch.cat([torch.full_like(sentences[:, :1], START), sentences[:, :-1]], dim=1)


def unroll(
    decoder: Decoder,
    memory: Memory,
    words: Tensor,
    *,
    sampled_share: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (B, S, V) and attention (B, S, L) of a decoder that reads the words (B, S) one by one.

    From the second word on, a word is replaced with probability `sampled_share` by one that is drawn from
    the decoder's last logits (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099). No gradient flows
    through the draw. `generator` draws; None: torch's global generator.
    """
    state = decoder.first_state(memory)
    all_logits: list[Tensor] = []
    all_weights: list[Tensor] = []
    for given in words.unbind(dim=1):
        read = given
        if all_logits and sampled_share > 0:
            shares = all_logits[-1].detach().softmax(dim=1)
            drawn = shares.multinomial(1, generator=generator)[:, 0]
            chances = torch.rand(given.shape, device=given.device, generator=generator)
            read = torch.where(chances < sampled_share, drawn, given)
        logits, state, weights = decoder.step(read, state, memory)
        all_logits.append(logits)
        all_weights.append(weights)
    return torch.stack(all_logits, dim=1), torch.stack(all_weights, dim=1)
