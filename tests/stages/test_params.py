from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.training import TrainConfig
from stages.params import read_params


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extract: {tap: layer4}", r"unknown key 'extract.tap'. Available: taps, views, sampling, "),
        ("extract: {dtype: float8}", r"extract.dtype: 'float8' is not allowed.*'float16' or 'float32'"),
        ("weights: {arch: resnet19}", r"Unknown arch 'resnet19'.*r2plus1d_18\.$"),
        ("extract: {taps: []}", r"extract.taps: \[\] is not allowed"),
        ("extract: {min_frames: 0}", r"extract.min_frames: 0 is not allowed.*greater than 0"),
        ("extract: {batch_size: 8}", r"unknown key 'extract.batch_size': .* its place is machine.yaml"),
        (
            "extract: {sampling: {fps: .inf}}",
            r"extract.sampling.fps: inf is not allowed. Give a finite number",
        ),
        (
            "extract: {max_failed_share: .nan}",
            r"extract.max_failed_share: nan is not allowed. Give a finite number",
        ),
        ("extract: {min_frames: many}", r"extract.min_frames: 'many' is not allowed"),
        (
            "extract: {sampling: {every: 2, fps: 3}}",
            r"extract.sampling: .*give one of 'all', 'every: n', 'fps: x', 'count: n'",
        ),
        (
            "extract: {sampling: every}",
            r"extract.sampling: 'every' is not allowed. Give one of 'all', 'every: n', 'fps: x', 'count: n'",
        ),
        ("extract: {store: {shards: 3}}", r"unknown key 'extract.store.shards'. Available: format, codec"),
        ("extract: {preprocessing: {crop: 300}}", r"resize 256 is smaller than crop 300"),
        ("extrcat: {}", r"unknown key 'extrcat'. Available: corpus, weights, extract, train, evaluate"),
        ("extract: {}", r"corpus is missing"),
        ("[1]", r"must be a mapping of keys to values"),
        ("a: [", r"is not YAML"),
    ],
)
def test_a_wrong_parameter_gives_one_message_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_params(write(tmp_path, text))


def test_all_wrong_parameters_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_params(write(tmp_path, "corpus: {manifets: 1}"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run stages from the repository's root"):
        read_params(tmp_path / "params.yaml")


def test_the_shipped_parameters_are_valid() -> None:
    read_params()


def test_what_params_yaml_leaves_out_has_its_default(tmp_path: Path) -> None:
    params = read_params(
        write(tmp_path, "corpus: {manifest: m.csv, root: videos}\ntrain: {seed: 3}\nevaluate:")
    )
    assert params.train == TrainConfig(seed=3)
    assert params.evaluate == EvaluateConfig()
