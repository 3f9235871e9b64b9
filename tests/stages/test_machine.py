"""machine.yaml: where it is read, what is laid over it, and what it says of wrong keys."""

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.settings.machine import Machine
from stages.machine import read_machine


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "FRAMECACHE_MACHINE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_file_all_is_as_in_the_code() -> None:
    assert read_machine() == Machine()


def test_a_file_of_comments_is_empty() -> None:
    Path("machine.yaml").write_text("# device: cpu\n")
    assert read_machine() == Machine()


def test_queued_experiments_read_the_projects_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("machine.yaml").write_text("num_readers: 5")
    (tmp_path / "queued").mkdir()
    monkeypatch.chdir(tmp_path / "queued")
    assert read_machine().num_readers == 2
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert read_machine().num_readers == 5


@pytest.mark.parametrize("given", ["{num_readers: 7, dask: {local: 2}}", "other.yaml"])
def test_the_variable_is_laid_over_the_file(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("machine.yaml").write_text("num_readers: 5\nresident_mb: 1")
    Path("other.yaml").write_text("num_readers: 7\ndask: {local: 2}")
    monkeypatch.setenv("FRAMECACHE_MACHINE", given)
    machine = read_machine()
    assert (machine.num_readers, machine.resident_mb) == (7, 1)
    assert machine.dask
    assert machine.dask.local == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devise: cpu", r"machine.yaml: unknown key 'devise'. Available: device, num_readers, "),
        ("device: tpu", r"machine.yaml: device: 'tpu' is not allowed"),
        ("num_decoders: 0", r"machine.yaml: num_decoders: 0 is not allowed"),
        ("dask: localhost", r"machine.yaml: dask.*: 'localhost' is not allowed"),
        ("[1]", r"machine.yaml must be a mapping"),
    ],
)
def test_a_wrong_key_or_value_is_named(text: str, message: str) -> None:
    Path("machine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_machine()


@pytest.mark.parametrize("given", ["missing.yaml", "{device: cpu", "[1]"])
def test_a_variable_that_is_neither_a_file_nor_settings_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMECACHE_MACHINE", given)
    with pytest.raises(ConfigError, match="neither a file nor YAML"):
        read_machine()


def test_a_wrong_value_of_the_variable_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMECACHE_MACHINE", "{device: tpu}")
    with pytest.raises(ConfigError, match="FRAMECACHE_MACHINE: device: 'tpu' is not allowed"):
        read_machine()
