from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.extraction import ExtractConfig
from stages.params import CorpusConfig, load_section


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extract: {tap: layer4}", r"unknown key 'extract.tap'. Available: taps, sampling, "),
        ("extract: {dtype: float8}", r"extract.dtype: 'float8' is not allowed.*'float16' or 'float32'"),
        ("extract: {taps: []}", r"extract.taps: \[\] is not allowed"),
        ("extract: {batch_size: 0}", r"extract.batch_size: 0 is not allowed.*greater than or equal to 1"),
        (
            "extract: {sampling: {fps: .inf}}",
            r"extract.sampling.fps: inf is not allowed. Give a finite number",
        ),
        (
            "extract: {stall_seconds: .nan}",
            r"extract.stall_seconds: nan is not allowed. Give a finite number",
        ),
        ("extract: {batch_size: many}", r"extract.batch_size: 'many' is not allowed"),
        (
            "extract: {sampling: {every: 2, fps: 3}}",
            r"extract.sampling: .*give one of 'all', 'every: n', 'fps: x', 'count: n'",
        ),
        ("extract: {store: {shards: 3}}", r"unknown key 'extract.store.shards'. Available: format, codec"),
        ("extract: {preprocessing: {crop: 300}}", r"resize 256 is smaller than crop 300"),
        ("extrcat: {}", r"unknown section 'extrcat'. Available: corpus, digits, weights, extract"),
        ("corpus: {}", r"section 'extract' is missing"),
        ("[1]", r"must be a mapping of keys to values"),
        ("a: [", r"is not YAML"),
    ],
)
def test_a_wrong_parameter_gives_one_message_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_section("extract", ExtractConfig, path=write(tmp_path, text))


def test_all_wrong_parameters_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_section("corpus", CorpusConfig, path=write(tmp_path, "corpus: {manifets: 1}"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run stages from the repository's root"):
        load_section("corpus", CorpusConfig, path=tmp_path / "params.yaml")


def test_the_shipped_parameters_are_valid() -> None:
    from pipeline.backbone.weights import WeightsConfig
    from pipeline.corpora.digits import DigitsConfig
    from pipeline.settings.evaluation import EvaluateConfig
    from pipeline.settings.training import TrainConfig

    for name, model in {
        "corpus": CorpusConfig,
        "digits": DigitsConfig,
        "weights": WeightsConfig,
        "extract": ExtractConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
    }.items():
        load_section(name, model)
