"""Questions about clips: padding, answers that were never heard, and what is known without looking."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import ManifestError
from pipeline.learn.answering import answer_batches
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.streaming import Batch, Loader
from pipeline.learn.tasks import Predictions, QuestionAnswering
from pipeline.manifest import Clip, Question
from pipeline.settings.training import TrainConfig
from tests.support.toy import make_clip, make_features, order_task, random_maps

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
QUESTIONS = [
    (Question("which is it?", "one"), Question("is it so?", "yes")),
    (Question("is it?", "no"),),
    (Question("which?", "two"), Question("is it so?", "no"), Question("what?", "never heard")),
]
LENGTHS = [3, 5, 4]


def measured(task: QuestionAnswering, predictions: Predictions) -> dict[str, float]:
    return task.measure(predictions)(np.ones(len(predictions.clips)))


def make_config(**fields: object) -> TrainConfig:
    question = {"embedding_size": 6, "hidden_size": 8, "joint_size": 8, "dropout": 0.0}
    small = {
        "task": "question_answering",
        "hidden_size": 8,
        "projection": None,
        "dropout": 0.0,
        "bidirectional": False,
    }
    return TrainConfig.model_validate({**small, "question": question, **fields})


def make_batch(questions: list[tuple[Question, ...]], *, lengths: list[int]) -> Batch:
    maps = random_maps(lengths, (2, 2, 3))
    clips = [make_clip(clip_id, questions=items) for clip_id, items in zip(maps, questions, strict=True)]
    (batch,) = Loader(make_features(maps), clips, len(clips), 1).epoch()
    return batch


def make_model(name: str = "recurrent") -> tuple[QuestionAnswering, nn.Module]:
    config = make_config()
    clips = [
        make_clip("a", questions=QUESTIONS[0]),
        make_clip("b", questions=(*QUESTIONS[1], QUESTIONS[2][0])),
    ]
    task = QuestionAnswering.from_clips(clips, config)
    assert task.known_answers == ("no", "one", "two", "yes")
    return task, task.build_model(name, config, map_shapes=[(2, 2, 3)]).eval()


@pytest.mark.parametrize("name", ["recurrent", "baseline"])
def test_a_question_alone_gets_the_same_answer(name):
    task, model = make_model(name)
    batch = make_batch(QUESTIONS, lengths=LENGTHS)
    batch.maps[0, 3:] = torch.nan
    together = task.answers(model, batch)
    for row, (items, length) in enumerate(zip(QUESTIONS, LENGTHS, strict=True)):
        assert together[row].questions == tuple(item.question for item in items)
        for place, item in enumerate(items):
            alone = dataclasses.replace(
                batch,
                clips=(make_clip("x", questions=(item,)),),
                maps=batch.maps[row : row + 1, :length],
                lengths=batch.lengths[row : row + 1],
            )
            (answer,) = task.answers(model, alone)
            torch.testing.assert_close(answer.logits[0], together[row].logits[place])


def test_the_question_lstm_and_the_clip_meet_by_product():
    task, model = make_model()
    batch = make_batch(QUESTIONS, lengths=LENGTHS)
    (answers, *_) = task.answers(model, batch)
    clip = torch.tanh(model.clip(batch.maps[:1, :3], None))[0]
    for item, logits in zip(QUESTIONS[0], answers.logits, strict=True):
        words = torch.tensor(task.vocabulary.encode(item.question))
        states, _ = model.encoder.recurrence(model.embedding(words)[None])  # torch's own loop over the words
        joint = torch.tanh(model.to_joint(states[0, -1])) * clip
        torch.testing.assert_close(logits, model.head(joint))


def test_the_baseline_does_not_look():
    task, model = make_model("baseline")
    batch = make_batch(QUESTIONS, lengths=LENGTHS)
    blind = dataclasses.replace(batch, maps=torch.full_like(batch.maps, 7))
    torch.testing.assert_close(task.run_model(model, blind), task.run_model(model, batch))


def test_answers_that_were_never_heard_are_always_wrong_and_not_in_the_loss():
    task, model = make_model()
    batch = make_batch(QUESTIONS, lengths=LENGTHS)
    no, one, two, yes = range(1, 5)
    targets = task.targets(batch)
    assert targets.tolist() == [
        [one, yes, UNLABELLED],
        [no, UNLABELLED, UNLABELLED],
        [two, no, 0],
    ]
    outputs = task.run_model(model, batch).detach()
    by_hand = [
        -outputs[row, place].log_softmax(dim=0)[number].item()
        for row, place, number in [(0, 0, one), (0, 1, yes), (1, 0, no), (2, 0, two), (2, 1, no)]
    ]
    assert task.loss(outputs, targets).item() == pytest.approx(np.mean(by_hand), rel=1e-5)
    predictions = answer_batches(model, [batch], task=task, device=CPU)
    right = torch.nn.functional.one_hot(torch.tensor([two, no, 0]), 5).float()
    outputs = (*predictions.outputs[:2], dataclasses.replace(predictions.outputs[2], logits=right))
    predictions = dataclasses.replace(predictions, outputs=outputs)
    hits = [
        *(answer.logits[:, 1:].argmax(dim=1) + 1 for answer in predictions.outputs[:2]),
        torch.tensor([two, no, -1]),
    ]
    expected = [(hit == target[: len(hit)]).sum().item() for hit, target in zip(hits, targets, strict=True)]
    measure = task.measure(predictions)
    assert measure(np.ones(3))["accuracy"] == pytest.approx(sum(expected) / 6)
    assert measure(np.array([0, 0, 2]))["accuracy"] == pytest.approx(2 / 3)
    losses = [
        -answer.logits[place].log_softmax(dim=0)[number].item()
        for answer, row in zip(predictions.outputs, targets.tolist(), strict=True)
        for place, number in enumerate(row)
        if number > 0
    ]
    assert measured(task, predictions)["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def ask_order(num_clips: int, *, split: str, seed: int) -> tuple[list[Clip], dict[str, np.ndarray]]:
    """Which channel's spike comes first, and questions whose answer is in the question."""
    clips, maps = order_task(num_clips, split=split, seed=seed)
    return [
        dataclasses.replace(
            clip,
            questions=(
                Question("which is first?", str(clip.label)),
                Question("is it the first?", "yes" if clip.label == "first" else "no"),
                Question("say yes", "yes"),
            ),
        )
        for clip in clips
    ], maps


def test_answers_are_learnt_and_the_baseline_knows_only_what_questions_tell():
    config = make_config(hidden_size=16, learning_rate=0.01)
    train_clips, train_maps = ask_order(64, split="train", seed=0)
    test_clips, test_maps = ask_order(40, split="test", seed=1)
    features = make_features(train_maps | test_maps)
    task = QuestionAnswering.from_clips(train_clips, config)
    accuracy = {}
    for name in ("recurrent", "baseline"):
        model = task.build_model(name, config, map_shapes=[(2, 1, 1)])
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        (batch,) = Loader(features, train_clips, 64, 1).epoch()
        for _ in range(80):
            loss = task.loss(task.run_model(model, batch), task.targets(batch))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        predictions = answer_batches(
            model, Loader(features, test_clips, 16, 1).epoch(), task=task, device=CPU
        )
        accuracy[name] = measured(task, predictions)["accuracy"]
    assert accuracy["recurrent"] > 0.95
    assert accuracy["baseline"] == pytest.approx((1 + 2 * 0.5) / 3)


def test_answers_are_rendered_with_their_question_and_probability():
    task, model = make_model()
    predictions = answer_batches(
        model, [make_batch(QUESTIONS, lengths=LENGTHS)], task=task, device=CPU, labelled=False
    )
    rows = task.render(predictions.outputs[0], torch.zeros(3), num_answers=2)
    assert [row["question"] for row in rows] == ["which is it?"] * 2 + ["is it so?"] * 2
    shares = predictions.outputs[0].logits[0, 1:].softmax(dim=0)
    assert rows[0]["probability"] == pytest.approx(shares.max().item())
    assert rows[0]["answer"] == task.known_answers[int(shares.argmax())]


def test_a_task_reads_back_from_its_description():
    task, _ = make_model()
    assert QuestionAnswering.from_description(task.describe()) == task


def test_unheard_answers_are_counted(caplog):
    task, _ = make_model()
    with caplog.at_level(logging.WARNING):
        task.check([make_clip("v", split="val", questions=QUESTIONS[2])])
    assert "3 questions about val clips: 1 have an answer" in caplog.text
    assert "1 of their words are unknown" in caplog.text


def test_clips_without_questions_and_questions_with_one_answer_are_refused():
    with pytest.raises(ManifestError, match="Clip 'b' has no question"):
        QuestionAnswering.from_clips([make_clip("a", questions=QUESTIONS[0]), make_clip("b")], make_config())
    with pytest.raises(ManifestError, match=r"occur at least 1 times \(words.min_count\): 'no'\. The task"):
        QuestionAnswering.from_clips([make_clip("b", questions=QUESTIONS[1])], make_config())
