"""Cells: the ways to read the steps of a sequence, by the names that the setting `cell` has for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from pipeline.learn.models.encoder import Encoder, NoEncoder, RecurrentEncoder
from pipeline.learn.models.transformer import TransformerEncoder

if TYPE_CHECKING:
    from pipeline.learn.models.config import ModelConfig


@dataclass(frozen=True)
class Cell:
    """How an encoder is built, and its properties that other code asks for."""

    build: Callable[["ModelConfig", int, int | None], Encoder]  # of features, and of those after a projection
    label: str  # of the model in tables of results
    has_backward_half: bool = False  # if bidirectional, a state's second half has read from the end
    has_heads: bool = False  # num_heads divides hidden_size


def _recurrent(net: type[nn.LSTM | nn.GRU | nn.RNN]) -> Cell:
    def build(config: "ModelConfig", num_features: int, projection: int | None) -> Encoder:
        return RecurrentEncoder(
            num_features,
            net=net,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            projection=projection,
            dropout=config.dropout,
        )

    return Cell(build, label=net.__name__, has_backward_half=True)


def _build_transformer(config: "ModelConfig", num_features: int, _: int | None) -> Encoder:
    return TransformerEncoder(
        num_features,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
    )


def _build_none(config: "ModelConfig", num_features: int, projection: int | None) -> Encoder:
    return NoEncoder(num_features, projection=projection, dropout=config.dropout)


CELLS: dict[str, Cell] = {
    "lstm": _recurrent(nn.LSTM),
    "gru": _recurrent(nn.GRU),
    "rnn": _recurrent(nn.RNN),
    "transformer": Cell(_build_transformer, label="transformer", has_heads=True),
    "none": Cell(_build_none, label="no recurrence"),
}
