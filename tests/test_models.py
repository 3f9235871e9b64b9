"""Packed and padded batches against each clip alone, stepped by hand through the cell's equations."""

import pytest
import torch
from torch import Tensor

from pipeline.models import MODELS, SUMMARIES, ModelConfig, RecurrentEncoder, build_model
from pipeline.streaming import Standardisation

LENGTHS = [3, 5, 1, 4]


def step(cell: str, x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One step of one direction of one layer, as in the equations of torch's documentation."""
    w_ih, w_hh, b_ih, b_hh = weights
    inner, recurrent = w_ih @ x + b_ih, w_hh @ h + b_hh
    if cell == "rnn":
        return torch.tanh(inner + recurrent), c
    if cell == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = inner.chunk(3), recurrent.chunk(3)
        reset, update = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        return (1 - update) * torch.tanh(n_x + reset * n_h) + update * h, c
    i, f, g, o = (inner + recurrent).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def states_by_hand(encoder: RecurrentEncoder, cell: str, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Every state (L, E) of one unpadded sequence (L, D), and the state (E,) at which each direction ends."""
    recurrence = encoder.recurrence
    x = encoder.projection(steps)
    for layer in range(recurrence.num_layers):
        outputs, ends = [], []
        for suffix in ["", "_reverse"] if recurrence.bidirectional else [""]:
            weights = [
                getattr(recurrence, f"{kind}_l{layer}{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            h = c = torch.zeros(recurrence.hidden_size, dtype=x.dtype)
            positions = range(len(x)) if suffix == "" else reversed(range(len(x)))
            states: list[Tensor] = [h] * len(x)
            for position in positions:
                h, c = step(cell, x[position], h, c, weights)
                states[position] = h
            outputs.append(torch.stack(states))
            ends.append(h)
        x = torch.cat(outputs, dim=1)  # (L, E)
    return x, torch.cat(ends)


def make_encoder(cell: str, **options: object) -> RecurrentEncoder:
    torch.manual_seed(0)
    defaults = {"hidden_size": 4, "num_layers": 1, "bidirectional": False, "projection": None, "dropout": 0.0}
    return RecurrentEncoder(6, cell=cell, **{**defaults, **options}).double()  # type: ignore[arg-type]


def padded_steps() -> Tensor:
    """(B, L, 6); NaN after each length, so that any influence of padding shows."""
    torch.manual_seed(1)
    steps = torch.randn(len(LENGTHS), max(LENGTHS), 6, dtype=torch.float64)
    for row, length in zip(steps, LENGTHS, strict=True):
        row[length:] = torch.nan
    return steps


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("projection", [None, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_padded_batch_equals_each_clip_alone(cell, bidirectional, num_layers, projection, summary):
    encoder = make_encoder(cell, bidirectional=bidirectional, num_layers=num_layers, projection=projection)
    steps, lengths = padded_steps(), torch.tensor(LENGTHS)
    states = encoder(steps, lengths)  # (B, L, E)
    summaries = SUMMARIES[summary](states, lengths, bidirectional=bidirectional)  # (B, E)
    for row, length in enumerate(LENGTHS):
        expected, ends = states_by_hand(encoder, cell, steps[row, :length])
        torch.testing.assert_close(states[row, :length], expected)
        assert not states[row, length:].any()
        by_hand = {"last": ends, "mean": expected.mean(dim=0), "max": expected.amax(dim=0)}
        torch.testing.assert_close(summaries[row], by_hand[summary])


def test_the_backward_direction_is_read_at_its_own_last_step():
    states = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    last = SUMMARIES["last"](states, torch.tensor([3, 2]), bidirectional=True)
    assert last.tolist() == [[8, 9, 2, 3], [16, 17, 14, 15]]


@pytest.mark.parametrize("name", ["mean", "max", "last"])
def test_summaries_ignore_padding_of_any_value(name):
    states = torch.tensor([[[-3.0], [-1.0], [torch.nan]], [[-5.0], [99.0], [torch.inf]]])
    summary = SUMMARIES[name](states, torch.tensor([2, 1]), bidirectional=False)
    assert summary.tolist() == [[{"mean": -2, "max": -1, "last": -1}[name]], [-5]]


def make_model(name: str, **options: object) -> torch.nn.Module:
    config = ModelConfig(**{"dropout": 0.0, "hidden_size": 4, "projection": 3, **options})  # type: ignore[arg-type]
    standardisation = Standardisation(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]))
    return build_model(
        name, config, map_shape=(2, 3, 2), num_outputs=5, standardisation=standardisation, seed=3
    )


@pytest.mark.parametrize("pooling", ["flatten", "avg", "max"])
@pytest.mark.parametrize("name", MODELS)
def test_padding_changes_neither_outputs_nor_gradients(name, pooling):
    model = make_model(name, pooling=pooling)
    maps, lengths = torch.randn(4, 5, 2, 3, 2).half(), torch.tensor(LENGTHS)

    def run(padding: float) -> tuple[Tensor, list[Tensor]]:
        for row, length in zip(maps, LENGTHS, strict=True):
            row[length:] = padding
        model.zero_grad()
        outputs = model(maps, lengths)
        outputs.square().sum().backward()
        return outputs, [parameter.grad for parameter in model.parameters()]

    outputs, gradients = run(0.0)
    outputs_with_nan, gradients_with_nan = run(torch.nan)
    assert torch.equal(outputs, outputs_with_nan)
    for clean, other in zip(gradients, gradients_with_nan, strict=True):
        assert torch.equal(clean, other)


def test_the_baseline_is_a_linear_map_of_the_mean_standardised_frame():
    model = make_model("baseline")
    maps = torch.randn(1, 4, 2, 3, 2).half()
    mean, std = torch.tensor([0.5, -1.0])[:, None, None], torch.tensor([2.0, 0.25])[:, None, None]
    frame = torch.stack([(maps[0, t].float() - mean) / std for t in range(3)]).sum(dim=0) / 3
    expected = model.head.weight @ frame.reshape(-1) + model.head.bias
    torch.testing.assert_close(model(maps, torch.tensor([3]))[0], expected)


def test_initial_weights_follow_from_the_seed():
    first, second = make_model("recurrent"), make_model("recurrent")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_dropout_acts_in_training_only():
    model = make_model("recurrent", dropout=0.5)
    maps, lengths = torch.randn(2, 4, 2, 3, 2), torch.tensor([4, 2])
    assert not torch.equal(model(maps, lengths), model(maps, lengths))
    model.eval()
    assert torch.equal(model(maps, lengths), model(maps, lengths))


def test_dropout_takes_the_same_features_from_all_steps_of_a_clip():
    encoder = make_encoder("lstm", dropout=0.5, projection=3)
    inputs = []
    encoder.projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    encoder(torch.ones(2, 5, 6, dtype=torch.float64), torch.tensor([5, 5]))
    steps = inputs[0].reshape(5, 2, 6)  # packed: all first steps, all second steps, ...
    assert set(steps.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(steps, steps[:1].expand_as(steps))
