"""`stages.store import`: features of other programs, with their labels, and training on them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import stages.store
import stages.train
from pipeline.store import open_view
from tests.support.in_process import run_main
from tests.support.project import Project


def import_(folder: Path, *arguments: str, succeeds: bool = True) -> str:
    status, stdout, stderr = run_main(stages.store.main, folder, "import", *arguments)
    assert (status == 0) == succeeds, stdout + stderr
    return stdout + stderr


def write_mstcn(folder: Path, *, num_clips: int = 8) -> dict[str, np.ndarray]:
    """Clips (T, D) in MS-TCN's layout, whose feature 0 is their label, for 4 frames each."""
    for name in ("features", "groundTruth", "splits"):
        (folder / name).mkdir(parents=True)
    (folder / "mapping.txt").write_text("0 pour\n1 stir\n")
    clips = {}
    for number in range(num_clips):
        name, labels = f"rgb-{number:02}-1", (np.arange(9 + number) // 4 + number) % 2
        clips[name] = np.random.default_rng(number).standard_normal((len(labels), 6)).astype(np.float32)
        clips[name][:, 0] = labels
        np.save(folder / f"features/{name}.npy", clips[name].T)
        (folder / f"groundTruth/{name}.txt").write_text("".join(f"{['pour', 'stir'][i]}\n" for i in labels))
    lines = [f"{name}.txt\n" for name in clips]
    (folder / "splits/train.split1.bundle").write_text("".join(lines[:-2]))
    (folder / "splits/test.split1.bundle").write_text("".join(lines[-2:]))
    return clips


def test_mstcns_layout_becomes_features_and_a_manifest_with_intervals(tmp_path: Path) -> None:
    clips = write_mstcn(tmp_path / "salads")
    output = import_(tmp_path, "salads", "--name", "i3d", "--fps", "4", "--known", "network=I3D")
    assert "extract.imported: imported/i3d" in output
    status, stdout, _ = run_main(stages.store.main, tmp_path, "inspect", "--view", "imported/i3d")
    assert (status, stdout.splitlines()[1].split()[:2]) == (0, ["imported/i3d/i3d", "imported"])
    with open_view(tmp_path / "imported/i3d/i3d") as view:
        assert view.clip_ids() == sorted(clips)
        np.testing.assert_array_equal(view.read("rgb-03-1")[..., 0, 0], clips["rgb-03-1"])
        assert view.frame_seconds("rgb-03-1")[:3].tolist() == [0, 0.25, 0.5]
        assert view.contract.foreign is not None
        assert view.contract.foreign.known == {"network": "I3D"}
    with (tmp_path / "manifests/i3d.csv").open() as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert [row["split"] for row in rows.values()].count("val") == 1
    assert rows["rgb-06-1"]["split"] == rows["rgb-07-1"]["split"] == "test"
    assert rows["rgb-00-1"]["source"] == "features/rgb-00-1.npy"
    assert rows["rgb-00-1"]["frame_labels"] == "0.0-0.875:pour|0.875-1.875:stir|1.875-2.25:pour"


def test_actionformers_layout_becomes_features_and_a_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "thumos"
    folder.mkdir()
    database = {}
    for number, subset in enumerate(("Validation", "Validation", "Test")):
        np.save(folder / f"video_{number}.npy", np.full((4 + number, 3), number, np.float32))
        actions = [
            {"segment": [2.5, 3], "label": "Dive"},
            {"segment": [0.5, 2], "label": "Jump", "label_id": 0},
        ]
        database[f"video_{number}"] = {"subset": subset, "duration": 8.0, "annotations": actions}
    (folder / "thumos14.json").write_text(json.dumps({"version": "x", "database": database}))
    import_(tmp_path, "thumos", "--name", "i3d", "--manifest", "thumos.csv")
    with open_view(tmp_path / "imported/i3d/i3d") as view:
        assert view.frame_seconds("video_0").tolist() == [1, 3, 5, 7]
    with (tmp_path / "thumos.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["split"] for row in rows) == ["test", "train", "val"]
    assert rows[0]["label"] == "Jump|Dive"
    assert rows[0]["frame_labels"] == "0.5-2.0:Jump|2.5-3.0:Dive"


def _without_a_label(folder: Path) -> None:
    np.save(folder / "features/new.npy", np.ones((6, 9), np.float32))


def _with_an_unknown_label(folder: Path) -> None:
    (folder / "mapping.txt").write_text("0 pour\n")


def _with_too_few_labels(folder: Path) -> None:
    (folder / "groundTruth/rgb-00-1.txt").write_text("pour\n")


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (_without_a_label, ["--fps=4"], "1 clips have features and are in no list of salads: new."),
        (_with_an_unknown_label, ["--fps=4"], "'stir' is not in mapping.txt."),
        (_with_too_few_labels, ["--fps=4"], "clips do not have the frames that their labels have"),
        (lambda _: None, [], "does not say when it is shown. Give their rate: --fps."),
        (lambda _: None, ["--fps=4", "--known=I3D"], "--known I3D: give a name and a text"),
        (lambda _: None, ["--fps=0"], "--fps: 0 is not above 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, spoil: object, options: list[str], message: str
) -> None:
    write_mstcn(tmp_path / "salads")
    spoil(tmp_path / "salads")  # type: ignore[operator]
    assert message in import_(tmp_path, "salads", "--name=i3d", *options, succeeds=False)
    assert [path.name for path in tmp_path.iterdir()] == ["salads"]


def test_imported_features_are_trained_on_like_any_others(project: Project) -> None:
    write_mstcn(project.path / "salads")
    import_(project.path, "salads", "--name=i3d", "--fps=4")
    project.run("git", "add", "manifests/i3d.csv")
    project.set(
        {
            "corpus": {"manifest": "manifests/i3d.csv", "root": "salads"},
            "extract.imported": "imported/i3d",
            "train": {"tap": "i3d", "task": "frame_labels", "epochs": 1},
        }
    )
    project.extract_here()
    index = Path("i3d/index.arrow")
    assert (project.path / "features" / index).samefile(project.path / "imported/i3d" / index)
    status, _, stderr = run_main(stages.train.main, project.path, "baseline")
    assert status == 0, stderr
    assert "5 train and 1 val clips" in stderr
    description = json.loads((project.path / "checkpoints/baseline/checkpoint.json").read_text())
    (contract,) = description["contracts"]
    assert contract["foreign"]["axes"] == "DT"
