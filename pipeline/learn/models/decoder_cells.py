"""Decoder cells: the ways to say words, by the names that the setting `decoder.cell` has for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import nn

from pipeline.learn.models.decoder import Decoder, RecurrentDecoder
from pipeline.learn.models.transformer import check_heads
from pipeline.learn.models.transformer_decoder import TransformerDecoder
from pipeline.registry import one_of


@dataclass(frozen=True)
class DecoderCell:
    """How a decoder is built, and its properties that other code asks for."""

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
