"""The page of all settings: it is what the models say, and says what a setting may be and when it counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.contract import Preprocessing, Windows
from pipeline.settings.machine import Machine
from pipeline.settings.streams import Stream
from stages.parameters import page
from stages.params import Params

PAGE = Path(__file__).parents[2] / "docs/parameters.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python -m stages.parameters > docs/parameters.md`"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The settings of a model, with those of its sections."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.default, BaseModel):
            yield from keys(type(field.default), f"{prefix}{name}.")


def test_each_setting_has_one_row() -> None:
    rows = [line.split("`")[1] for line in page().splitlines() if line.startswith("| `")]
    sections = {"corpus", "weights", "extract", "train", "evaluate"}
    fields = {name: field.annotation for name, field in Params.model_fields.items()}
    assert fields.keys() == sections
    expected = [key for name, model in fields.items() if model for key in keys(model, f"{name}.")]
    prepared = keys(Preprocessing, "extract.preprocessing.")
    windows = [*keys(Windows, "extract.windows."), *keys(Stream, "train.streams.")]
    cluster = ["dask.local", "dask.scheduler"]
    assert sorted(rows) == sorted([*expected, *prepared, *windows, *keys(Machine), *cluster])


def test_each_setting_has_a_meaning() -> None:
    assert [line for line in page().splitlines() if line.endswith("|  |")] == []


@pytest.mark.parametrize(
    "row",
    [
        "| `corpus.root` | must be given | text | the folder that",
        "| `weights.std` | `null` | [number > 0, number > 0, number > 0] or `null` | ",
        "| `extract.taps` | `[layer4]` | list of text | layers whose maps are kept |",
        "| `extract.views` | `[center]` | list of text | Of each frame, each with features of its own",
        "| `extract.sampling` | `all` | [section](#extractsampling) | all \\| every: n \\| ",
        "| `extract.store` |  | [section](#extractstore) | ",
        "| `extract.store.shard_mb` | `256` | whole number ≥ 1, ≤ 4096 | MiB of a full shard",
        "| `train.bidirectional` | `true` | `true`, `false` | ",
        "| `train.class_weights` | `null` | `balanced`, `effective_number` or `null` | ",
        "| `train.cell` | `lstm` | `lstm`, `gru`, `rnn`, `transformer`, `none` | ",
        "| `train.frame_net` | `null` | `cell`, `points` or `null` | A per-frame network",
        "| `train.tail_learning_rate` | `1.0e-05` | number > 0 | ",
        "| `train.momentum` | `0.9` | number ≥ 0, < 1 | of sgd; unused by default: it needs optimizer sgd |",
        "| `train.words` |  | [section](#trainwords) | of captions and questions; unused by default: it",
        "| `train.decoder.num_heads` | `4` | whole number > 0 | of a transformer; divides hidden_size; unused"
        " by default: it needs decoder.cell transformer |",
        "| `num_decoders` | `null` | whole number > 0 or `null` | threads that decode",
        "| `dask` | `null` | [section](#dask) or `null` | ",
    ],
)
def test_a_row_has_default_values_and_meaning(row: str) -> None:
    assert f"\n{row}" in page()
