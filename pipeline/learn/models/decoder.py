"""Decoders: from an encoded clip and the words so far to the next word."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.learn.models.attention import AdditiveAttention, Memory
from pipeline.learn.models.transformer import AttentionWithWeights, causal_mask, check_heads, position_signal
from pipeline.learn.vocabulary import PAD, START
from pipeline.registry import one_of

State = tuple[Tensor, ...]  # what a decoder remembers of the words so far; each (B, ...)


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
        net: type[nn.LSTM | nn.GRU | nn.RNN],
        config: "DecoderConfig",
        *,
        num_words: int,
        memory_size: int,
        summary_size: int,
    ) -> None:
        super().__init__()
        size, hidden = config.embedding_size, config.hidden_size
        self.inject = config.inject
        self.embedding = nn.Embedding(num_words, size, padding_idx=PAD)
        self.dropout = nn.Dropout(config.dropout)
        input_size = {"start": size, "every_step": 2 * size, "attention": size + memory_size}[config.inject]
        self.recurrence = net(
            input_size,
            hidden,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
        )
        self.num_states = 2 if isinstance(self.recurrence, nn.LSTM) else 1
        self.from_summary: nn.Module
        if config.inject == "attention":
            self.initial = nn.Linear(summary_size, self.num_states * config.num_layers * hidden)
            self.attention = AdditiveAttention(memory_size=memory_size, query_size=hidden, size=hidden)
            self.deep_output = nn.Linear(hidden + memory_size, size)
            self.head = nn.Linear(size, num_words)
        else:
            self.from_summary = nn.Linear(summary_size, size)
            self.head = nn.Linear(hidden, num_words)
        if config.inject == "start":
            # The clip enters once: it must be as large as words are, and be kept until a word needs it.
            self.from_summary = nn.Sequential(self.from_summary, nn.LayerNorm(size))
            if isinstance(self.recurrence, nn.LSTM):
                _open_forget_gates(self.recurrence)

    def first_state(self, memory: Memory) -> State:
        """(h, c) or (h,), each (B, layers, H); then the tensor of the clip that every step reads, if any."""
        shape = (
            memory.summary.shape[0],
            self.num_states,
            self.recurrence.num_layers,
            self.recurrence.hidden_size,
        )
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
        states, fixed = state[: self.num_states], state[self.num_states :]
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
        is_lstm = self.num_states == 2
        outputs, after = self.recurrence(inputs[:, None], before if is_lstm else before[0])
        return outputs[:, 0], tuple(state.transpose(0, 1) for state in (after if is_lstm else [after]))


def _open_forget_gates(lstm: nn.LSTM) -> None:
    """Set biases to 1: a state then keeps three quarters of itself, not half (Jozefowicz et al. 2015)."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_ih"):  # (4 H,): input, forget, cell and output gates
            nn.init.ones_(bias.data[lstm.hidden_size : 2 * lstm.hidden_size])


class TransformerDecoder(nn.Module):
    """Self-attention over the words so far (Vaswani et al. 2017, arXiv 1706.03762; norms come first).

    `inject` says how the clip enters: its summary is the first element of the sequence (start) or is added
    to every word (every_step), or each layer attends to all of its states (attention; the weights that are
    returned are the last layer's).
    """

    keeps_words: ClassVar[bool] = True

    def __init__(
        self, config: "DecoderConfig", *, num_words: int, memory_size: int, summary_size: int
    ) -> None:
        super().__init__()
        size = config.hidden_size
        self.inject = config.inject
        self.embedding = nn.Embedding(num_words, size, padding_idx=PAD)
        self.dropout = nn.Dropout(config.dropout)
        clip_size = memory_size if config.inject == "attention" else summary_size
        # The states of an LSTM are small: the norm makes them as large as words are.
        self.from_clip = nn.Sequential(nn.Linear(clip_size, size), nn.LayerNorm(size))
        options: dict[str, Any] = {
            "d_model": size,
            "nhead": config.num_heads,
            "dim_feedforward": 4 * size,
            "dropout": config.dropout,
            "batch_first": True,
            "norm_first": True,
        }
        self.layers: nn.TransformerDecoder | nn.TransformerEncoder
        if config.inject == "attention":
            self.layers = nn.TransformerDecoder(
                nn.TransformerDecoderLayer(**options), config.num_layers, norm=nn.LayerNorm(size)
            )
            self.layers.layers[-1].multihead_attn = AttentionWithWeights(
                size, config.num_heads, dropout=config.dropout, batch_first=True
            )
        else:
            self.layers = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**options),
                config.num_layers,
                norm=nn.LayerNorm(size),
                enable_nested_tensor=False,
            )
        self.head = nn.Linear(size, num_words)

    def first_state(self, memory: Memory) -> State:
        """No words yet: (B, 0)."""
        return (torch.empty(memory.summary.shape[0], 0, dtype=torch.int64, device=memory.summary.device),)

    def step(self, words: Tensor, state: State, memory: Memory) -> Step:
        """Read the next word (B,) int64 of each sentence, and again all words before it."""
        prefix = torch.cat([state[0], words[:, None]], dim=1)  # (B, S)
        logits, attention = self(memory, prefix)
        return Step(logits[:, -1], (prefix,), attention[:, -1])

    def forward(self, memory: Memory, words: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) and attention (B, S, L) after each of the words (B, S) int64."""
        inputs = self.embedding(words)  # (B, S, size)
        if self.inject == "start":
            inputs = torch.cat([self.from_clip(memory.summary)[:, None], inputs], dim=1)
        elif self.inject == "every_step":
            inputs = inputs + self.from_clip(memory.summary)[:, None]
        inputs = self.dropout(inputs + position_signal(inputs))
        mask = causal_mask(inputs)
        if self.inject == "attention":
            return self._attend(inputs, mask, memory)
        outputs = self.layers(inputs, mask=mask, is_causal=False)[:, -words.shape[1] :]
        return self.head(outputs), outputs.new_empty(*words.shape, 0)

    def _attend(self, inputs: Tensor, mask: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        weights: list[Tensor] = []
        last = self.layers.layers[-1].multihead_attn
        hook = last.register_forward_hook(lambda _module, _inputs, outputs: weights.append(outputs[1]))
        # `tgt_is_causal=None` would have torch look at the mask, which can't be exported.
        outputs = self.layers(
            inputs,
            self.from_clip(memory.states),
            tgt_mask=mask,
            tgt_is_causal=False,
            memory_key_padding_mask=~memory.valid,
        )
        hook.remove()
        return self.head(outputs), weights[0]


@dataclass(frozen=True)
class DecoderCell:
    """How a decoder is built, and what other code has to know of it."""

    build: Callable[..., Decoder]  # of a DecoderConfig; num_words, memory_size and summary_size by name
    has_heads: bool = False  # num_heads divides hidden_size


DECODERS: dict[str, DecoderCell] = {
    "lstm": DecoderCell(partial(RecurrentDecoder, nn.LSTM)),
    "gru": DecoderCell(partial(RecurrentDecoder, nn.GRU)),
    "rnn": DecoderCell(partial(RecurrentDecoder, nn.RNN)),
    "transformer": DecoderCell(TransformerDecoder, has_heads=True),
}

Share = Annotated[float, Field(ge=0, lt=1)]


class DecoderConfig(BaseModel):
    """How an encoded clip becomes words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Annotated[str, one_of(DECODERS)] = "lstm"
    inject: Literal["start", "every_step", "attention"] = "attention"  # how the clip reaches the decoder
    embedding_size: PositiveInt = 64  # features of a word; a transformer has hidden_size instead
    hidden_size: PositiveInt = 128  # also of the attention
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4  # of a transformer; divides hidden_size
    dropout: Share = 0.2
    doubly_stochastic: Annotated[float, Field(ge=0)] = 0.0  # weight of a loss that spreads attention evenly
    scheduled_sampling: Share = 0.0  # share of words that are the model's own when it reads captions
    scheduled_sampling_steps: PositiveInt = 500  # batches in which that share rises from 0

    @model_validator(mode="after")
    def _attention_is_there_to_be_regularised(self) -> Self:
        if self.doubly_stochastic and self.inject != "attention":
            raise ValueError(
                f"doubly_stochastic {self.doubly_stochastic} is for attention, and inject {self.inject!r} has"
                " none; set doubly_stochastic to 0"
            )
        return self

    @model_validator(mode="after")
    def _heads_share_the_state(self) -> Self:
        if DECODERS[self.cell].has_heads:
            check_heads(self.hidden_size, self.num_heads)
        return self


def teacher_words(sentences: Tensor) -> Tensor:
    """The words (M, S) that a decoder reads to say sentences (M, S) with their END: START goes first."""
    return torch.cat([torch.full_like(sentences[:, :1], START), sentences[:, :-1]], dim=1)


def unroll(
    decoder: Decoder, memory: Memory, words: Tensor, *, sampled_share: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Logits (B, S, V) and attention (B, S, L) of a decoder that reads the words (B, S) one by one.

    From the second word on, a word is replaced with probability `sampled_share` by one that is drawn from
    the decoder's last logits (scheduled sampling, Bengio et al. 2015, arXiv 1506.03099), with torch's global
    random state. No gradient flows through the draw.
    """
    state = decoder.first_state(memory)
    all_logits: list[Tensor] = []
    all_weights: list[Tensor] = []
    for given in words.unbind(dim=1):
        read = given
        if all_logits and sampled_share > 0:
            drawn = all_logits[-1].detach().softmax(dim=1).multinomial(1)[:, 0]
            read = torch.where(torch.rand(given.shape, device=given.device) < sampled_share, drawn, given)
        logits, state, weights = decoder.step(read, state, memory)
        all_logits.append(logits)
        all_weights.append(weights)
    return torch.stack(all_logits, dim=1), torch.stack(all_weights, dim=1)
