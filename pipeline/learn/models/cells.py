"""Cells: the ways to read the steps of a sequence, by the names that the setting `cell` has for them."""

from collections.abc import Callable

from torch import nn

from pipeline.learn.models.encoder import Encoder, NoEncoder, RecurrentEncoder
from pipeline.learn.models.recurrence import Net
from pipeline.learn.models.transformer import TransformerEncoder
from pipeline.settings.model import ModelConfig

# Takes a config, the number of features, and that of features after a projection.
BuildCell = Callable[[ModelConfig, int, int | None], Encoder]


def _recurrent(net: Net) -> BuildCell:
    def build(config: ModelConfig, num_features: int, projection: int | None) -> Encoder:
        return RecurrentEncoder(
            num_features,
            net=net,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            projection=projection,
            dropout=config.dropout,
        )

    return build


def _build_transformer(config: ModelConfig, num_features: int, _: int | None) -> Encoder:
    return TransformerEncoder(
        num_features,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        bidirectional=config.bidirectional,
        dropout=config.dropout,
    )


def _build_none(config: ModelConfig, num_features: int, projection: int | None) -> Encoder:
    return NoEncoder(num_features, projection=projection, dropout=config.dropout)


CELL_BUILDERS: dict[str, BuildCell] = {
    "lstm": _recurrent(nn.LSTM),
    "gru": _recurrent(nn.GRU),
    "rnn": _recurrent(nn.RNN),
    "transformer": _build_transformer,
    "none": _build_none,
}
