"""Settings of words: the vocabulary, the network that says captions, and the one that reads questions."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipeline.registry import one_of

Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class DecoderCell:
    """A network that says words."""

    has_embedding_size: bool = True  # a word's features have a size of their own, not hidden_size
    has_heads: bool = False  # num_heads divides hidden_size


DECODERS: dict[str, DecoderCell] = {
    "lstm": DecoderCell(),
    "gru": DecoderCell(),
    "rnn": DecoderCell(),
    "transformer": DecoderCell(has_embedding_size=False, has_heads=True),
}


class WordsConfig(BaseModel):
    """The words of a model, and how it puts them into sentences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_count: PositiveInt = 1  # words that are rarer in the train split become <unknown>
    max_words: PositiveInt = 30  # of a decoded sentence
    beam_size: PositiveInt = 1  # sentences kept at each word, or each frame of ctc; 1: greedy
    length_power: Annotated[float, Field(ge=0)] = 0.0  # compare log-probability / length ** power


class DecoderConfig(BaseModel):
    """How an encoded clip becomes words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Annotated[str, one_of(DECODERS)] = "lstm"  # network that says the words
    inject: Literal["start", "every_step", "attention"] = "attention"  # how the clip reaches the decoder
    embedding_size: PositiveInt = 64  # features of a word; a transformer has hidden_size instead
    hidden_size: PositiveInt = 128  # also of the attention
    num_layers: PositiveInt = 1  # of the cell
    num_heads: PositiveInt = 4  # of a transformer; divides hidden_size
    dropout: Share = 0.2  # of embedded words, between layers, and before the last layer
    doubly_stochastic: Annotated[float, Field(ge=0)] = 0.0  # weight of a loss that spreads attention evenly
    scheduled_sampling: Share = 0.0  # share of words that are the model's own when it reads captions
    scheduled_sampling_steps: PositiveInt = 500  # batches in which that share rises from 0

    @model_validator(mode="after")
    def _heads_share_the_state(self) -> Self:
        if DECODERS[self.cell].has_heads:
            check_heads(self.hidden_size, self.num_heads)
        return self


class QuestionConfig(BaseModel):
    """How a question's words become a vector."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding_size: PositiveInt = 32  # of a word
    hidden_size: PositiveInt = 64  # of the LSTM that reads the question
    joint_size: PositiveInt = 128  # of the product of question and clip
    dropout: Share = 0.2  # of embedded words, and before the last layer


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raise ValueError unless the heads, and the sines and cosines of positions, divide `hidden_size`."""
    if hidden_size % num_heads or hidden_size % 2:
        raise ValueError(
            f"a transformer's hidden_size {hidden_size} must be even, and a multiple of num_heads {num_heads}"
        )
