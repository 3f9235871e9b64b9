"""Decoder cells: the ways to say words, by the names that the setting `decoder.cell` has for them."""

from collections.abc import Callable
from functools import partial

from torch import nn

from pipeline.learn.models.decoder import Decoder, RecurrentDecoder
from pipeline.learn.models.transformer_decoder import TransformerDecoder

# Each takes a DecoderConfig; num_words, memory_size and summary_size by name.
DECODER_BUILDERS: dict[str, Callable[..., Decoder]] = {
    "lstm": partial(RecurrentDecoder, nn.LSTM),
    "gru": partial(RecurrentDecoder, nn.GRU),
    "rnn": partial(RecurrentDecoder, nn.RNN),
    "transformer": TransformerDecoder,
}
