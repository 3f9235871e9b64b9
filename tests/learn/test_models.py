"""Packed and padded batches against each clip alone, stepped by hand through the cell's equations."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.learn.models import MODEL_CLASSES, SUMMARIES, RecurrentEncoder, build_model
from pipeline.learn.models.encoder import Sequences
from pipeline.learn.models.frames import place_map
from pipeline.learn.models.summaries import Attention
from pipeline.learn.sequences import pool, to_steps
from pipeline.learn.streaming import Standardisation
from pipeline.settings.model import ModelConfig

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
    x = encoder.projection(steps)
    for layer in encoder.recurrence.layers:
        outputs, ends = [], []
        for suffix in ["", "_reverse"] if layer.bidirectional else [""]:
            weights = [
                getattr(layer, f"{kind}_l0{suffix}")
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            ]
            h = c = torch.zeros(layer.hidden_size, dtype=x.dtype)
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
    net = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]
    return RecurrentEncoder(6, net=net, **{**defaults, **options}).double()  # type: ignore[arg-type]


def padded_steps() -> Tensor:
    """(B, L, 6); NaN after each length, so that any influence of padding shows."""
    torch.manual_seed(1)
    steps = torch.randn(len(LENGTHS), max(LENGTHS), 6, dtype=torch.float64)
    for row, length in zip(steps, LENGTHS, strict=True):
        row[length:] = torch.nan
    return steps


def attention_by_hand(attention: Attention, states: Tensor) -> Tensor:
    """The weights (L,) of the steps of one unpadded sequence (L, E)."""
    hidden, score = attention.hidden, attention.score.weight[0]
    scores = [score @ torch.tanh(hidden.weight @ state + hidden.bias) for state in states]
    exponentials = [torch.exp(value) for value in scores]
    return torch.stack([value / sum(exponentials) for value in exponentials])


@pytest.mark.parametrize("summary", SUMMARIES)
@pytest.mark.parametrize("projection", [None, 3])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_padded_batch_equals_each_clip_alone(cell, bidirectional, num_layers, projection, summary):
    encoder = make_encoder(cell, bidirectional=bidirectional, num_layers=num_layers, projection=projection)
    steps, lengths = padded_steps(), torch.tensor(LENGTHS)
    states = encoder(Sequences(steps, lengths))  # (B, L, E)
    summarise = SUMMARIES[summary](encoder.num_outputs)
    if isinstance(summarise, Attention):
        summarise.double()
    summaries = summarise(states, lengths, bidirectional=bidirectional)  # (B, E)
    for row, length in enumerate(LENGTHS):
        expected, ends = states_by_hand(encoder, cell, steps[row, :length])
        torch.testing.assert_close(states[row, :length], expected)
        assert not states[row, length:].any()
        by_hand = {"last": ends, "mean": expected.mean(dim=0), "max": expected.amax(dim=0)}
        if isinstance(summarise, Attention):
            weights = attention_by_hand(summarise, expected)
            by_hand["attention"] = sum(w * state for w, state in zip(weights, expected, strict=True))
        torch.testing.assert_close(summaries[row], by_hand[summary])


def test_the_backward_direction_is_read_at_its_own_last_step():
    states = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    last = SUMMARIES["last"](4)(states, torch.tensor([3, 2]), bidirectional=True)
    assert last.tolist() == [[8, 9, 2, 3], [16, 17, 14, 15]]


@pytest.mark.parametrize("name", ["mean", "max", "last"])
def test_summaries_ignore_padding_of_any_value(name):
    states = torch.tensor([[[-3.0], [-1.0], [torch.nan]], [[-5.0], [99.0], [torch.inf]]])
    summary = SUMMARIES[name](1)(states, torch.tensor([2, 1]), bidirectional=False)
    assert summary.tolist() == [[{"mean": -2, "max": -1, "last": -1}[name]], [-5]]


def test_attention_weighs_valid_steps_alone():
    torch.manual_seed(0)
    attention = Attention(3)
    states = torch.randn(2, 4, 3)
    states[1, 2:] = 0
    weights = attention.weights(states, torch.tensor([4, 2]))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert weights[1].tolist()[2:] == [0, 0]
    torch.testing.assert_close(weights[1, :2], attention_by_hand(attention, states[1, :2]))
    assert len(weights[0].unique()) == 4


def test_a_dense_batch_equals_the_same_batch_packed():
    encoder = make_encoder("lstm", bidirectional=True, num_layers=2)
    steps = torch.randn(3, 5, 6, dtype=torch.float64)
    longer = torch.cat([steps, steps[:, :1]], dim=1)
    dense = encoder(Sequences(steps, torch.tensor([5, 5, 5])))
    assert torch.equal(dense, encoder(Sequences(steps)))
    packed = encoder(Sequences(longer, torch.tensor([5, 5, 5])))
    torch.testing.assert_close(packed[:, :5], dense)


STANDARDISATION = Standardisation(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]))


def make_model(name: str, *, per_frame: bool = False, **options: object) -> torch.nn.Module:
    config = ModelConfig(**{"dropout": 0.0, "hidden_size": 4, "projection": 3, **options})  # type: ignore[arg-type]
    return build_model(
        name,
        config,
        map_shapes=[(2, 3, 2)],
        num_outputs=5,
        per_frame=per_frame,
        standardisations=[STANDARDISATION],
        seed=3,
    )


def standardised(maps: Tensor) -> Tensor:
    mean, std = STANDARDISATION.mean[:, None, None], STANDARDISATION.std[:, None, None]
    return (maps - mean) / std


SYSTEMS = [
    {"scan": "frames", "pooling": "flatten"},
    {"scan": "frames", "pooling": "avg"},
    {"scan": "frames", "pooling": "max", "cell": "gru", "summary": "attention"},
    {"scan": "locations", "bidirectional": True},
    {"scan": "rows", "scan_every": 2, "cell": "rnn"},
    {"scan": "columns"},
    {"scan": "horizontal_strips", "scan_size": 2, "summary": "max"},
    {"scan": "vertical_strips", "scan_size": 2},
    {"scan": "channels", "summary": "mean"},
]


@pytest.mark.parametrize("options", SYSTEMS, ids=str)
def test_a_system_equals_its_parts_stepped_by_hand(options):
    model = make_model("recurrent", **options).double()
    torch.manual_seed(0)
    maps, lengths = torch.randn(4, 5, 2, 3, 2, dtype=torch.float64), torch.tensor(LENGTHS)
    outputs = model(maps, lengths)
    for clip, length, output in zip(maps, LENGTHS, outputs, strict=True):
        scan = {"scan_size": 1, "scan_every": 1, **options}
        chosen = {name: scan[name] for name in ("scan", "scan_size", "scan_every")}
        frames = [standardised(pool(frame, scan.get("pooling", "flatten"))) for frame in clip[:length]]
        steps = [step for frame in frames for step in to_steps(frame, **chosen)]
        states, ends = states_by_hand(model.encoder, options.get("cell", "lstm"), torch.stack(steps))
        weights = attention_by_hand(model.summary, states) if "attention" in options.values() else states
        summary = {
            "last": ends,
            "mean": states.mean(dim=0),
            "max": states.amax(dim=0),
            "attention": weights @ states if weights.ndim == 1 else None,
        }[options.get("summary", "last")]
        torch.testing.assert_close(output, model.head.weight @ summary + model.head.bias)


def test_a_frame_net_reads_the_steps_of_each_frame_and_another_the_frames():
    model = make_model("recurrent", scan="locations", frame_net="cell", bidirectional=True).double()
    torch.manual_seed(0)
    maps, lengths = torch.randn(4, 5, 2, 3, 2, dtype=torch.float64), torch.tensor(LENGTHS)
    outputs = model(maps, lengths)
    for clip, length, output in zip(maps, LENGTHS, outputs, strict=True):
        frames = []
        for frame in clip[:length]:
            steps = to_steps(standardised(frame), scan="locations")  # (6, 2)
            frames.append(states_by_hand(model.frame_net.encoder, "lstm", steps)[1])
        _, ends = states_by_hand(model.encoder, "lstm", torch.stack(frames))
        torch.testing.assert_close(output, model.head.weight @ ends + model.head.bias)


@pytest.mark.parametrize("scan_every", [1, 2])
def test_points_are_the_maxima_of_learned_channels_and_their_expected_places(scan_every):
    model = make_model("recurrent", scan="locations", scan_every=scan_every, frame_net="points").double()
    torch.manual_seed(0)
    maps, lengths = torch.randn(4, 5, 2, 3, 2, dtype=torch.float64), torch.tensor(LENGTHS)
    net = model.frame_net
    net.sharpness.data.uniform_(0.5, 2)
    outputs = model(maps, lengths)
    places = [(row, column) for row in (-1, 0, 1) for column in (-1, 1)][::scan_every]
    for clip, length, output in zip(maps, LENGTHS, outputs, strict=True):
        frames = []
        for frame in clip[:length]:
            steps = to_steps(standardised(frame), scan="locations", scan_every=scan_every)
            channels = torch.stack([net.layer.weight @ step + net.layer.bias for step in steps])  # (S, K)
            maxima = [max(values) for values in channels.T]
            points = []
            for values, sharpness in zip(channels.T, net.sharpness, strict=True):
                weights = (sharpness * values).exp() / (sharpness * values).exp().sum()
                points += [sum(weights[i] * place[axis] for i, place in enumerate(places)) for axis in (0, 1)]
            frames.append(torch.stack(maxima + points))
        _, ends = states_by_hand(model.encoder, "lstm", torch.stack(frames))
        torch.testing.assert_close(output, model.head.weight @ ends + model.head.bias)


def test_the_places_of_a_map_with_one_row_are_in_its_middle():
    assert place_map(1, 3).tolist() == [[[0, 0, 0]], [[-1, 0, 1]]]


def test_an_image_is_a_clip_of_one_frame_and_one_step():
    model = make_model("recurrent").double()
    maps = torch.randn(3, 2, 3, 2, dtype=torch.float64)
    outputs = model(maps[:, None], torch.tensor([1, 1, 1]))
    for image, output in zip(maps, outputs, strict=True):
        _, ends = states_by_hand(model.encoder, "lstm", standardised(image).reshape(1, -1))
        torch.testing.assert_close(output, model.head.weight @ ends + model.head.bias)


def test_locations_bidirectional_reads_the_backward_direction_at_the_first_location():
    model = make_model("recurrent", scan="locations", bidirectional=True)
    maps = torch.randn(1, 1, 2, 3, 2)
    states, _ = model.encode(maps)  # (1, 1, 6, 8)
    ends = torch.cat([states[0, 0, -1, :4], states[0, 0, 0, 4:]])
    torch.testing.assert_close(model(maps)[0], model.head.weight @ ends + model.head.bias)
    at_the_last_position = model.head.weight @ states[0, 0, -1] + model.head.bias
    assert not torch.allclose(model(maps)[0], at_the_last_position)


def test_an_answer_a_frame_is_read_where_each_direction_has_seen_the_frame():
    model = make_model("recurrent", per_frame=True, scan="rows", bidirectional=True).double()
    maps, lengths = torch.randn(4, 5, 2, 3, 2, dtype=torch.float64), torch.tensor(LENGTHS)
    outputs = model(maps, lengths)
    assert outputs.shape == (4, 5, 5)
    for clip, length, output in zip(maps, LENGTHS, outputs, strict=True):
        steps = [row for f in clip[:length] for row in to_steps(standardised(f), scan="rows")]
        states, _ = states_by_hand(model.encoder, "lstm", torch.stack(steps))  # (length * 3, 8)
        for t in range(length):
            ends = torch.cat([states[3 * t + 2, :4], states[3 * t, 4:]])
            torch.testing.assert_close(output[t], model.head.weight @ ends + model.head.bias)


def test_the_baseline_a_frame_sees_that_frame_alone():
    model = make_model("baseline", per_frame=True)
    maps = torch.randn(2, 3, 2, 3, 2)
    outputs = model(maps, torch.tensor([3, 3]))
    for clip, output in zip(maps, outputs, strict=True):
        for frame, answer in zip(clip, output, strict=True):
            expected = model.head.weight @ standardised(frame).reshape(-1) + model.head.bias
            torch.testing.assert_close(answer, expected)


def test_the_weights_of_attention_can_be_had_by_frame_and_step():
    model = make_model("recurrent", scan="rows", summary="attention")
    maps, lengths = torch.randn(2, 4, 2, 3, 2), torch.tensor([4, 2])
    weights = model.attention(maps, lengths)
    assert weights.shape == (2, 4, 3)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(2))
    assert not weights[1, 2:].any()
    states, _ = model.encode(maps, lengths)
    summary = (weights[..., None] * states).sum(dim=(1, 2))
    torch.testing.assert_close(model(maps, lengths), summary @ model.head.weight.T + model.head.bias)
    with pytest.raises(ConfigError, match=r"summary 'last' has no weights: set summary to attention"):
        make_model("recurrent").attention(maps, lengths)


@pytest.mark.parametrize("name", MODEL_CLASSES)
@pytest.mark.parametrize("options", [{}, {"scan": "rows", "frame_net": "cell"}, {"per_frame": True}], ids=str)
def test_lengths_may_be_left_out_when_all_frames_are_valid(name, options):
    model = make_model(name, **options)
    maps = torch.randn(2, 3, 2, 3, 2)
    torch.testing.assert_close(model(maps), model(maps, torch.tensor([3, 3])))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scan": "locations", "frame_net": "points", "projection": None}, "projection to a number"),
        ({"scan": "rows", "frame_net": "points"}, "set scan to locations"),
    ],
)
def test_points_need_places_and_a_number_of_channels(wrong, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "avg"},
        {"pooling": "max"},
        {"scan": "columns", "summary": "attention"},
        {"scan": "rows", "frame_net": "cell"},
        {"scan": "locations", "frame_net": "points"},
        {"per_frame": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_padding_changes_neither_outputs_nor_gradients(name, options):
    model = make_model(name, **options)
    maps, lengths = torch.randn(4, 5, 2, 3, 2).half(), torch.tensor(LENGTHS)

    def run(padding: float) -> tuple[Tensor, list[Tensor]]:
        for row, length in zip(maps, LENGTHS, strict=True):
            row[length:] = padding
        model.zero_grad()
        outputs = model(maps, lengths)
        if model.per_frame:  # what it says of padding frames means nothing
            outputs = outputs[torch.arange(5) < lengths[:, None]]
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
    frame = torch.stack([standardised(maps[0, t].float()) for t in range(3)]).sum(dim=0) / 3
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
    encoder(Sequences(torch.ones(2, 5, 6, dtype=torch.float64), torch.tensor([5, 5])))
    (steps,) = inputs  # (2, 5, 6)
    assert set(steps.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(steps, steps[:, :1].expand_as(steps))
