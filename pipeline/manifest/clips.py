"""A clip: what it shows, and its row in a manifest."""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import ManifestError


@dataclass(frozen=True, slots=True)
class FrameLabel:
    """What the frames with start_seconds <= time < end_seconds show."""

    start_seconds: float
    end_seconds: float
    label: str


@dataclass(frozen=True, slots=True)
class Question:
    """What may be asked of a clip, and the right answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Clip:
    """One sample: a stretch of a video, an image, a folder of images or several images; and its targets."""

    clip_id: str
    sources: tuple[str, ...]  # relative to the corpus root
    split: str  # train, val or test
    start_seconds: float | None = None  # of the source; its frames before this are not the clip's
    end_seconds: float | None = None  # exclusive
    group: str | None = None  # never in two splits: a subject, a scene, a source video
    label: str | None = None
    captions: tuple[str, ...] = ()
    values: tuple[float, ...] = ()  # to be predicted
    frame_labels: tuple[FrameLabel, ...] = ()  # increasing, disjoint; in the source's seconds
    questions: tuple[Question, ...] = ()
    image_fps: float = 1.0  # rate at which images are shown: gives their times


def clip_of_row(
    clip_id: str,
    source: str,
    start_seconds: float | None,
    end_seconds: float | None,
    split: str,
    group: str | None,
    label: str | None,
    caption: str | None,
    value: str | None,
    frame_labels: str | None,
    questions: str | None,
    image_fps: float | None,
) -> Clip:
    """A row of SCHEMA, checked before, as a Clip."""
    return Clip(
        clip_id=clip_id,
        sources=tuple(source.split("|")),
        split=split,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        group=group,
        label=label,
        captions=tuple(caption.split("|")) if caption else (),
        values=tuple(map(float, value.split("|"))) if value else (),
        frame_labels=tuple(_frame_label(text) for text in frame_labels.split("|")) if frame_labels else (),
        questions=tuple(_question(text) for text in questions.split("|")) if questions else (),
        image_fps=1.0 if image_fps is None else image_fps,
    )


def _frame_label(text: str) -> FrameLabel:
    times, label = text.split(":", 1)
    start, end = times.split("-")
    return FrameLabel(float(start), float(end), label.strip())


def _question(text: str) -> Question:
    question, answer = text.split("=")
    return Question(question.strip(), answer.strip())


def row_of_clip(clip: Clip) -> dict[str, str | float | None]:
    """A Clip as a row of SCHEMA. Raises ManifestError for a text that holds the separator."""
    labels = [frame_label.label for frame_label in clip.frame_labels]
    words = [text for item in clip.questions for text in (item.question, item.answer)]
    for text in (*clip.sources, *clip.captions, *labels, *words):
        if "|" in text:
            raise ManifestError(f"clip {clip.clip_id!r}: {text!r} holds the separator '|'. Take it out.")
    return {
        "clip_id": clip.clip_id,
        "source": "|".join(clip.sources),
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "split": clip.split,
        "group": clip.group,
        "label": clip.label,
        "caption": "|".join(clip.captions) or None,
        "value": "|".join(map(repr, clip.values)) or None,
        "frame_labels": "|".join(
            f"{decimal_text(item.start_seconds)}-{decimal_text(item.end_seconds)}:{item.label}"
            for item in clip.frame_labels
        )
        or None,
        "questions": "|".join(f"{item.question}={item.answer}" for item in clip.questions) or None,
        "image_fps": None if clip.image_fps == 1.0 else clip.image_fps,
    }


def decimal_text(number: float) -> str:
    """The shortest text that reads back as the same number, without an exponent."""
    return np.format_float_positional(number, trim="0")
