"""The stage `settings`: what each stage's file holds, and what is refused before anything is computed."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.manifest import FrameLabel, read_manifest, write_manifest
from stages import settings
from stages.params import Params
from stages.resolution import check_together
from tests.support.in_process import run_main
from tests.support.toy import make_clip

LABELS = ("left", "right")
REPOSITORY = Path(settings.__file__).parents[1]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """params.yaml, a manifest of eight clips with labels, and their sources, whose bytes are their names."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "videos").mkdir()
    with (tmp_path / "manifests/mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "source", "split", "label"])
        for number in range(8):
            name = f"clip{number}"
            (tmp_path / f"videos/{name}.mp4").write_text(name)
            writer.writerow(
                [name, f"{name}.mp4", ("train", "train", "val", "test")[number % 4], LABELS[number // 4]]
            )
    ask(tmp_path)
    return tmp_path


def ask(workspace: Path, **sections: dict[str, Any]) -> None:
    """Write params.yaml: the corpus, layer4, and these sections."""
    params = {
        "corpus": {"manifest": "manifests/mine.csv", "root": "videos"},
        "extract": {"taps": ["layer4"]} | sections.pop("extract", {}),
        "train": {"tap": "layer4"} | sections.pop("train", {}),
    }
    (workspace / "params.yaml").write_text(yaml.safe_dump(params | sections))


def run(workspace: Path, *arguments: str, status: int = 0) -> str:
    """What the stage writes to stderr."""
    found, _, stderr = run_main(settings.main, workspace, *arguments)
    assert found == status, stderr
    return stderr


def written(workspace: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (workspace / "settings").iterdir()}


def section(workspace: Path, stage: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((workspace / f"settings/{stage}.yaml").read_text())[name]
    return found


def test_each_stage_has_a_file_with_the_settings_that_matter_to_it(workspace: Path) -> None:
    run(workspace)
    assert written(workspace).keys() == {
        "corpus",
        "weights",
        "extract",
        "streams",
        "recurrent",
        "baseline",
        "evaluate",
        "report",
    }
    assert section(workspace, "weights", "weights")["arch"] == "resnet50"
    assert section(workspace, "extract", "extract")["preprocessing"] is None
    train = section(workspace, "recurrent", "train")
    assert train["hidden_size"] == 128
    assert not train.keys() & {"momentum", "num_heads", "scan_size", "decoder", "question", "words", "stride"}
    baseline = section(workspace, "baseline", "train")
    assert baseline["learning_rate"] == train["learning_rate"]
    assert not baseline.keys() & {"hidden_size", "cell", "bidirectional", "summary", "projection"}


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"train": {"hidden_size": 16}}, {"recurrent"}),
        ({"train": {"learning_rate": 0.1}}, {"recurrent", "baseline"}),
        ({"train": {"momentum": 0.9}}, set()),  # it does nothing, and has its default
        ({"train": {"optimizer": "sgd"}}, {"recurrent", "baseline"}),
        ({"extract": {"taps": ["layer4", "avgpool"]}}, {"extract"}),
        ({"evaluate": {"num_resamples": 10}}, {"evaluate"}),
        ({"weights": {"source": "random:1"}}, {"weights"}),
        ({"corpus": {"manifest": "manifests/mine.csv", "root": "./videos"}}, {"corpus"}),
    ],
)
def test_a_setting_moves_the_files_of_the_stages_that_it_matters_to(
    workspace: Path, changes: dict[str, Any], moved: set[str]
) -> None:
    run(workspace)
    before = written(workspace)
    ask(workspace, **changes)
    run(workspace)
    assert {name for name, data in written(workspace).items() if data != before[name]} == moved


def test_a_column_of_ones_own_moves_no_file_and_another_column_moves_those_of_training(
    workspace: Path,
) -> None:
    run(workspace)
    before = written(workspace)
    manifest = workspace / "manifests/mine.csv"
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},meta_camera", *(f"{row},{row[-2:]}" for row in rows)]))
    run(workspace)
    assert written(workspace) == before
    manifest.write_text("\n".join([f"{header},group", *(f"{row}," for row in rows[:-1]), f"{rows[-1]},x"]))
    run(workspace)
    moved = {name for name, data in written(workspace).items() if data != before[name]}
    assert moved == {"recurrent", "baseline"}
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert "${corpus.manifest}" not in stages["train"]["deps"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"hiden_size": 3}}, "unknown key 'train.hiden_size'. Available: "),
        ({"trian": {}}, "unknown key 'trian'. Available: corpus, weights, extract, train, evaluate"),
        ({"train": {"device": "cpu"}}, "unknown key 'train.device': no result depends on it"),
        ({"train": {"tap": "layer2"}}, "train.tap: 'layer2' is not among extract.taps (layer4)"),
        (
            {"extract": {"taps": ["layer9"]}},
            "extract.taps: Unknown tap 'layer9' for resnet50. Available: layer1",
        ),
        ({"train": {"views": ["center", "flip"]}}, "train.views: 'flip' is not among extract.views (center)"),
        (
            {"evaluate": {"views": ["corners"]}},
            "evaluate.views: 'top_left' is not among extract.views (center)",
        ),
        ({"train": {"tail": "layer4"}}, "train.tail: 'layer4' is no tap after train.tap, 'layer4'"),
        (
            {"train": {"task": "regression"}},
            "needs the column 'value' of the manifest, and 8 clips have nothing",
        ),
        ({"train": {"momentum": 0.8}}, "momentum"),
        ({"train": {"monitor": "rmse"}}, "rmse"),
        ({"evaluate": {"beam_size": 4}}, "beam_size"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: nan is not allowed"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    workspace: Path, changes: dict[str, Any], message: str
) -> None:
    ask(workspace, **changes)
    assert message in run(workspace, status=1)
    assert not (workspace / "settings").exists()


def test_all_that_is_wrong_in_all_sections_is_named_at_once(workspace: Path) -> None:
    ask(workspace, train={"epochs": 0}, extract={"dtype": "float8"}, weights={"arch": "alexnot"})
    stderr = run(workspace, status=1)
    for name in ("train.epochs: 0", "extract.dtype: 'float8'", "weights.arch: 'alexnot'"):
        assert name in stderr


def test_a_section_without_keys_has_all_defaults(workspace: Path) -> None:
    run(workspace)
    before = written(workspace)
    with (workspace / "params.yaml").open("a") as file:
        file.write("evaluate:\nweights:\n")
    run(workspace)
    assert written(workspace) == before


def test_weights_that_are_a_file_run_again_when_its_bytes_change_and_stand_where_it_is_not(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = workspace / "mine.pth"
    weights.write_bytes(b"first")
    ask(workspace, weights={"source": "mine.pth"})
    run(workspace)
    first = written(workspace)
    weights.write_bytes(b"other")
    run(workspace)
    other = written(workspace)
    assert {name for name, data in first.items() if data != other[name]} == {"weights"}
    weights.unlink()
    run(workspace)
    assert written(workspace) == other
    (workspace / "project").mkdir()
    (workspace / "settings").rename(workspace / "project/settings")
    monkeypatch.setenv("DVC_ROOT", str(workspace / "project"))
    run(workspace)
    assert written(workspace) == other


def test_sources_has_the_digest_of_each_source_and_moves_with_its_bytes_alone(workspace: Path) -> None:
    run(workspace)
    before = (workspace / "sources").read_text()
    assert len(set(before.split()[::2])) == 8
    source = workspace / "videos/clip3.mp4"
    source.write_text("clip3")  # the same bytes again
    run(workspace)
    assert (workspace / "sources").read_text() == before
    source.write_text("other")
    run(workspace)
    changed = set((workspace / "sources").read_text().splitlines()) - set(before.splitlines())
    assert len(changed) == 1
    assert changed.pop().endswith("clip3.mp4")


def test_where_the_corpus_is_not_the_recorded_digests_stand(workspace: Path) -> None:
    run(workspace)
    before = (workspace / "sources").read_bytes()
    (workspace / "videos").rename(workspace / "elsewhere")
    assert "8 of 8 sources are not in videos, and their recorded digests stand: clip0.mp4" in run(workspace)
    assert (workspace / "sources").read_bytes() == before


def test_a_corpus_that_was_never_here_is_an_error(workspace: Path) -> None:
    (workspace / "videos").rename(workspace / "elsewhere")
    assert "videos" in run(workspace, status=1)


def test_sources_is_not_written_through_a_link_to_dvcs_cache(workspace: Path) -> None:
    run(workspace)
    os.link(workspace / "sources", workspace / "cached")
    before = (workspace / "cached").read_bytes()
    (workspace / "videos/clip3.mp4").write_text("other")
    run(workspace)
    assert (workspace / "cached").read_bytes() == before


def test_a_wrong_machine_yaml_is_refused_before_anything_is_written(workspace: Path) -> None:
    (workspace / "machine.yaml").write_text("devise: cpu")
    assert "machine.yaml: unknown key 'devise'" in run(workspace, status=1)
    assert not (workspace / "settings").exists()


def test_a_background_that_no_train_clip_has_is_refused(tmp_path: Path) -> None:
    clips = [
        make_clip(split, split=split, frame_labels=(FrameLabel(0.0, 1.0, label),))
        for split, label in (("train", "left"), ("val", "up"), ("test", "left"))
    ]
    write_manifest(tmp_path / "clips.csv", clips)
    train = {"task": "frame_labels", "tap": "layer3", "segments": {"background": ["up", "left"]}}
    params = Params.model_validate(
        {"corpus": {"manifest": "clips.csv", "root": "/"}, "extract": {"taps": ["layer3"]}, "train": train}
    )
    with pytest.raises(ConfigError, match=r"train.segments.background: no train clip has up. Labels: left\."):
        check_together(params, read_manifest(tmp_path / "clips.csv"))
