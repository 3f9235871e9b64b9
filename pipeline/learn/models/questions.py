"""Question answering: a model of a clip, and a network that reads questions about it."""

import torch
from torch import Tensor, nn

from pipeline.learn.models.draws import Dropout
from pipeline.learn.models.encoder import RecurrentEncoder, Sequences
from pipeline.learn.models.frames import check_sentences
from pipeline.learn.models.summaries import last
from pipeline.learn.vocabulary import PAD
from pipeline.settings.words import QuestionConfig


class QuestionModel(nn.Module):
    """An LSTM reads the question; a small net answers from its last state and the clip's vector.

    State and vector are multiplied elementwise, as in "LSTM Q + norm I" of Antol et al. 2015, arXiv
    1505.00468. Without a clip the net answers from the question alone: a baseline that can only guess.
    """

    def __init__(
        self, clip: nn.Module | None, config: QuestionConfig, *, num_words: int, num_answers: int
    ) -> None:
        super().__init__()
        self.clip = clip
        self.embedding = nn.Embedding(num_words, config.embedding_size, padding_idx=PAD)
        self.encoder = RecurrentEncoder(
            config.embedding_size,
            net=nn.LSTM,
            hidden_size=config.hidden_size,
            num_layers=1,
            bidirectional=False,
            projection=None,
            dropout=config.dropout,
        )
        self.to_joint = nn.Linear(config.hidden_size, config.joint_size)
        self.head = nn.Sequential(
            nn.Linear(config.joint_size, config.joint_size),
            nn.Tanh(),
            Dropout(config.dropout),
            nn.Linear(config.joint_size, num_answers),
        )

    def forward(self, maps: Tensor, lengths: Tensor | None, questions: Tensor) -> Tensor:
        """Maps (B, T, C, H, W), lengths (B,) in frames, Q questions (B, Q, S) a clip -> logits (B, Q, K).

        A question is its word numbers, END, then PAD; logits of a question of PAD alone mean nothing. Raises
        ShapeError for questions of another shape.
        """
        check_sentences(questions, batch_size=maps.shape[0], what="questions")
        words = questions.flatten(0, 1)  # (B * Q, S)
        num_words = (words != PAD).sum(dim=1).clamp(min=1)
        states = self.encoder(
            Sequences(self.embedding(words))
        )  # reads forward: padding comes after the last word
        joint = torch.tanh(self.to_joint(last(states, num_words, bidirectional=False)))  # (B * Q, J)
        joint = joint.view(*questions.shape[:2], -1)  # (B, Q, J)
        if self.clip is not None:
            joint = joint * torch.tanh(self.clip(maps, lengths))[:, None]
        answers: Tensor = self.head(joint)
        return answers
