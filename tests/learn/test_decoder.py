"""Decoders against their papers' equations, written out for one sentence at a time."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from pipeline.learn.decoding import beam_search
from pipeline.learn.models.attention import Memory, doubly_stochastic_penalty
from pipeline.learn.models.decoder import Step, teacher_words, unroll
from pipeline.learn.models.decoder_cells import DECODER_BUILDERS
from pipeline.learn.models.encoder import NoEncoder, Sequences
from pipeline.learn.models.transformer import TransformerEncoder, position_signal
from pipeline.learn.vocabulary import END, PAD, START
from pipeline.settings.words import DecoderConfig

NUM_WORDS, MEMORY_SIZE, SUMMARY_SIZE = 9, 6, 5
LENGTHS = [3, 5, 1]
WORDS = torch.tensor([[START, 4, 7, 5], [START, 8, 8, 6], [START, 4, 4, 4]])
INJECTS = ("start", "every_step", "attention")
KINDS = list(itertools.product(DECODER_BUILDERS, INJECTS))


def make_decoder(cell: str, inject: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_size": 8, "num_heads": 2, "dropout": 0.0}
    config = DecoderConfig(cell=cell, inject=inject, **{**sizes, **options})  # type: ignore[arg-type]
    decoder = DECODER_BUILDERS[cell](
        config, num_words=NUM_WORDS, memory_size=MEMORY_SIZE, summary_size=SUMMARY_SIZE
    )
    return decoder.double().eval()


def make_memory(*, padding: float = 0.0) -> Memory:
    torch.manual_seed(1)
    states = torch.randn(3, 5, MEMORY_SIZE, dtype=torch.float64)
    valid = torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    states[~valid] = padding
    return Memory(states, valid, torch.randn(3, SUMMARY_SIZE, dtype=torch.float64))


def one(memory: Memory, row: int) -> Memory:
    """A clip alone, without padding."""
    length = LENGTHS[row]
    return Memory(
        memory.states[row : row + 1, :length],
        memory.valid[row : row + 1, :length],
        memory.summary[row : row + 1],
    )


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_show_and_tell_reads_the_clip_once_before_the_first_word(cell):
    decoder, memory = make_decoder(cell, "start", num_layers=2), make_memory()
    logits, attention = decoder(memory, WORDS)
    for row in range(3):
        inputs = [decoder.from_summary(memory.summary[row]), *decoder.embedding(WORDS[row])]
        outputs, _ = decoder.recurrence(torch.stack(inputs)[None])  # torch's own loop over the sequence
        torch.testing.assert_close(logits[row], decoder.head(outputs[0, 1:]))
    assert attention.shape == (3, 4, 0)


def test_what_enters_once_is_kept_the_forget_gates_begin_open():
    decoder = make_decoder("lstm", "start", num_layers=2)
    for layer in decoder.recurrence.layers:
        size, bias = layer.hidden_size, layer.bias_ih_l0
        assert (bias[size : 2 * size] == 1).all()
        assert (bias[:size].abs() < 1).all()
        assert (bias[2 * size :].abs() < 1).all()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_lrcn_reads_the_clip_beside_every_word(cell):
    decoder, memory = make_decoder(cell, "every_step"), make_memory()
    logits, _ = decoder(memory, WORDS)
    for row in range(3):
        clip = decoder.from_summary(memory.summary[row])
        inputs = [torch.cat([word, clip]) for word in decoder.embedding(WORDS[row])]
        outputs, _ = decoder.recurrence(torch.stack(inputs)[None])
        torch.testing.assert_close(logits[row], decoder.head(outputs[0]))


def test_show_attend_and_tell_follows_the_equations_of_the_paper_but_for_the_gate():
    decoder, memory = make_decoder("lstm", "attention"), make_memory(padding=1e3)
    logits, attention = decoder(memory, WORDS)
    attend = decoder.attention
    w_ih, w_hh, b_ih, b_hh = (parameter for _, parameter in decoder.recurrence.named_parameters())
    for row, length in enumerate(LENGTHS):
        annotations = memory.states[row, :length]  # a_1 ... a_L
        h, c = torch.tanh(decoder.initial(memory.summary[row])).chunk(2)
        for place, word in enumerate(WORDS[row]):
            scores = torch.stack(
                [attend.score(torch.tanh(attend.to_keys(a) + attend.to_query(h)))[0] for a in annotations]
            )  # e_ti
            alphas = scores.exp() / scores.exp().sum()
            z = sum(alpha * a for alpha, a in zip(alphas, annotations, strict=True))
            embedded = decoder.embedding.weight[word]
            gates = w_ih @ torch.cat([embedded, z]) + b_ih + w_hh @ h + b_hh
            i, f, g, o = gates.chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            deep = embedded + decoder.deep_output(torch.cat([h, z]))
            torch.testing.assert_close(logits[row, place], decoder.head(deep))
            torch.testing.assert_close(attention[row, place, :length], alphas)
        assert not attention[row, :, length:].any()


def attend_by_hand(layer: nn.MultiheadAttention, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax(Q K / sqrt(d)) V of each head in turn: outputs (S, D) and mean weights (S, L)."""
    w_q, w_k, w_v = layer.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.in_proj_bias.chunk(3)
    heads, weights = [], []
    for rows in torch.arange(len(w_q)).chunk(layer.num_heads):
        q, k, v = (
            x @ w[rows].T + b[rows] for x, w, b in ((queries, w_q, b_q), (keys, w_k, b_k), (keys, w_v, b_v))
        )
        weight = (q @ k.T / len(rows) ** 0.5).softmax(dim=1)
        heads.append(weight @ v)
        weights.append(weight)
    return layer.out_proj(torch.cat(heads, dim=1)), torch.stack(weights).mean(dim=0)


@pytest.mark.parametrize("inject", INJECTS)
def test_a_transformer_decoder_follows_the_equations_of_the_paper(inject):
    decoder, memory = make_decoder("transformer", inject), make_memory(padding=1e3)
    logits, attention = decoder(memory, WORDS)
    (layer,) = decoder.layers.layers
    for row, length in enumerate(LENGTHS):
        x = decoder.embedding(WORDS[row])
        clip = decoder.from_clip(memory.summary[row]) if inject != "attention" else None
        if inject == "start":
            x = torch.cat([clip[None], x])
        elif inject == "every_step":
            x = x + clip
        angles = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
        x[:, 0::2] += angles.sin()
        x[:, 1::2] += angles.cos()
        # Each word sees those up to itself: one prefix at a time.
        states = []
        for end in range(1, len(x) + 1):
            normed = layer.norm1(x[:end])
            states.append(x[end - 1] + attend_by_hand(layer.self_attn, normed[-1:], normed)[0][0])
        x = torch.stack(states)
        if inject == "attention":
            keys = decoder.from_clip(memory.states[row, :length])
            context, weights = attend_by_hand(layer.multihead_attn, layer.norm2(x), keys)
            x = x + context
            torch.testing.assert_close(attention[row, :, :length], weights)
            assert not attention[row, :, length:].any()
        norm = layer.norm3 if inject == "attention" else layer.norm2
        x = x + layer.linear2(layer.linear1(norm(x)).relu())
        expected = decoder.head(decoder.layers.norm(x))[-4:]
        torch.testing.assert_close(logits[row], expected)


@pytest.mark.parametrize(("cell", "inject"), KINDS)
def test_a_sentence_alone_word_by_word_equals_the_padded_batch(cell, inject):
    decoder, memory = make_decoder(cell, inject, num_layers=2), make_memory(padding=1e3)
    logits, attention = decoder(memory, WORDS)
    for row, length in enumerate(LENGTHS):
        alone = one(memory, row)
        state = decoder.first_state(alone)
        for place, word in enumerate(WORDS[row]):
            said = decoder.step(word[None], state, alone)
            state = said.state
            torch.testing.assert_close(said.logits[0], logits[row, place])
            torch.testing.assert_close(said.attention[0], attention[row, place, :length])


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize(("cell", "inject"), KINDS)
def test_a_clip_gets_the_same_words_whatever_its_batch(cell, inject, beam_size):
    decoder, memory = make_decoder(cell, inject), make_memory(padding=1e3)
    together = beam_search(decoder, memory, beam_size=beam_size, max_words=6)
    for row, sentence in enumerate(together):
        (alone,) = beam_search(decoder, one(memory, row), beam_size=beam_size, max_words=6)
        assert alone.words == sentence.words
        assert alone.log_probability == pytest.approx(sentence.log_probability)


def test_teacher_forcing_reads_the_sentence_one_place_later():
    sentences = torch.tensor([[4, 5, END], [6, END, PAD]])
    assert teacher_words(sentences).tolist() == [[START, 4, 5], [START, 6, END]]


class Listening:
    """A decoder that notes which words it reads."""

    def __init__(self, decoder: nn.Module) -> None:
        self.first_state = decoder.first_state
        self.decoder = decoder
        self.read: list[list[int]] = []

    def step(self, words: Tensor, state: tuple[Tensor, ...], memory: Memory) -> Step:
        self.read.append(words.tolist())
        return self.decoder.step(words, state, memory)


def words_read(share: float, *, seed: int = 0) -> Tensor:
    listening = Listening(make_decoder("lstm", "start"))
    memory = make_memory().repeat(100)
    torch.manual_seed(seed)
    unroll(listening, memory, WORDS.repeat_interleave(100, dim=0), sampled_share=share)
    return torch.tensor(listening.read).T


def test_scheduled_sampling_replaces_the_given_share_of_words_but_never_the_start():
    given = WORDS.repeat_interleave(100, dim=0)
    assert torch.equal(words_read(0.0), given)
    sampled = words_read(0.5)
    assert torch.equal(sampled[:, 0], given[:, 0])
    # Some draws equal the word that they replace: about one of nine.
    assert float((sampled != given)[:, 1:].float().mean()) == pytest.approx(0.5 * 8 / 9, abs=0.06)
    assert torch.equal(words_read(0.5), sampled)
    assert not torch.equal(words_read(0.5, seed=1), sampled)


def test_words_sampled_always_are_drawn_from_the_decoders_own_answer():
    decoder, memory = make_decoder("gru", "attention"), make_memory()
    with torch.no_grad():
        decoder.head.weight *= 1e4  # so certain that a draw is the best word
    listening = Listening(decoder)
    logits, _ = unroll(listening, memory, WORDS, sampled_share=1.0)
    assert torch.tensor(listening.read).T[:, 1:].tolist() == logits.argmax(dim=2)[:, :-1].tolist()


def test_the_doubly_stochastic_penalty_leaves_out_padding_of_words_and_steps():
    attention = torch.rand(3, 4, 5)
    num_words, num_steps = [4, 2, 0], [3, 5, 2]
    by_hand = [
        sum(
            (1 - sum(float(attention[m, s, i]) for s in range(num_words[m]))) ** 2
            for i in range(num_steps[m])
        )
        / num_steps[m]
        for m in (0, 1)
    ]
    words = torch.arange(4) < torch.tensor(num_words)[:, None]
    valid = torch.arange(5) < torch.tensor(num_steps)[:, None]
    penalty = doubly_stochastic_penalty(attention, words, valid)
    assert penalty[:2].tolist() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_a_transformer_encoder_sees_valid_steps_only_and_later_ones_only_when_bidirectional(bidirectional):
    torch.manual_seed(0)
    encoder = TransformerEncoder(
        4, hidden_size=8, num_layers=2, num_heads=2, bidirectional=bidirectional, dropout=0.0
    ).eval()
    steps = torch.randn(3, 5, 4)
    for row, length in enumerate(LENGTHS):
        steps[row, length:] = torch.nan
    states = encoder(Sequences(steps, torch.tensor(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        alone = encoder(Sequences(steps[row : row + 1, :length], torch.tensor([length])))
        torch.testing.assert_close(states[row, :length], alone[0])
        assert not states[row, length:].any()
    changed = steps.clone()
    changed[1, 3] += 1
    same = torch.isclose(encoder(Sequences(changed, torch.tensor(LENGTHS)))[1, :3], states[1, :3]).all()
    assert bool(same) is not bidirectional


def test_positions_are_told_apart():
    signal = position_signal(torch.zeros(1, 6, 4))
    assert signal[0].tolist() == [0, 1, 0, 1]
    assert torch.pdist(signal).min() > 0.1


def test_no_encoder_projects_each_step_for_itself():
    encoder = NoEncoder(4, projection=3, dropout=0.0)
    steps = torch.randn(2, 3, 4)
    states = encoder(Sequences(steps, torch.tensor([3, 1])))
    torch.testing.assert_close(states[0], encoder.projection(steps[0]))
    assert not states[1, 1:].any()
