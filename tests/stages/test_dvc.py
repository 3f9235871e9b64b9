"""What DVC's users expect, shown by driving the real DVC."""

import json
import os
import re
import shutil
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.deploy.prediction import predict
from pipeline.learn.checkpoint import load_checkpoint
from pipeline.store import Journal, open_view
from pipeline.store.upkeep.care import journal_checks, verify
from tests.support.project import NAMES, Project, plans

TRAINING = ["train@recurrent", "train@baseline", "evaluate", "report"]


def ran(output: str) -> list[str]:
    """The stages that DVC ran."""
    return re.findall(r"Running stage '(?:[^']*:)?([\w@]+)'", output)


def plan_of(output: str) -> str:
    return plans(output)[-1]


def shard_inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in folder.rglob("c/*/0/0/0")}


def test_a_second_repro_runs_nothing(project: Project) -> None:
    rows = pq.read_table(project.path / "reports/predictions.parquet").to_pylist()
    row = next(row for row in rows if row["model"] == "recurrent")
    video, weights = project.videos / f"{row['clip_id']}.mp4", project.path / "weights"
    (said,) = predict(project.path / "checkpoints/recurrent", [video], weights=weights)
    assert said.answers[0]["label"] == row["answer"]
    assert said.answers[0]["probability"] == pytest.approx(max(row["probabilities"]), rel=1e-3)
    assert ran(project.dvc("repro")) == ["settings"]


def test_an_added_and_a_changed_clip_are_two_clips_computed_and_a_removed_one_leaves(
    project: Project,
) -> None:
    before = shard_inodes(project.path / "features")
    project.add_video("added", num_frames=60)  # or old rows of clip0 and clip3 would be too many to stay
    project.add_video("clip3", first_index=999)
    project.write_manifest([*NAMES[1:], "added"])
    output = project.dvc("repro", "extract")
    assert ran(output) == ["settings", "extract"]
    assert plan_of(output) == "1 new, 1 source changed, 6 unchanged"
    assert before < shard_inodes(project.path / "features")
    with open_view(project.path / "features/layer4") as view:
        assert view.clip_ids() == ["added", *NAMES[1:]]
    assert ran(project.dvc("repro", "--dry")) == ["settings", "streams", *TRAINING]


def test_other_weights_extract_again_with_the_reason_and_back_computes_nothing(project: Project) -> None:
    project.set({"weights.source": "random:1"})
    output = project.dvc("repro", "extract")
    assert ran(output) == ["settings", "weights", "extract"]
    assert re.fullmatch(r"8 weights_sha256 changed: \w+ -> \w+, 0 unchanged", plan_of(output))
    project.set({"weights.source": "random:0"})
    output = project.dvc("repro", "extract")
    assert "Plan" not in output or plan_of(output) == "8 unchanged"


def test_other_sampling_extracts_again_with_the_reason_and_back_computes_nothing(project: Project) -> None:
    project.set({"extract.sampling": {"every": 2}})
    assert plan_of(project.extract_here()) == "8 sampling changed: all -> {'every': 2}, 0 unchanged"
    project.set({"extract.sampling": "all"})
    assert plan_of(project.extract_here()) == "8 unchanged"


def test_an_added_tap_computes_that_tap_and_train_stays_fresh(project: Project) -> None:
    before = shard_inodes(project.path / "features/layer4")
    project.set({"extract.taps": ["layer4", "avgpool"]})
    output = project.dvc("repro")
    assert plan_of(output) == "8 tap added (avgpool), 0 unchanged"
    assert ran(output) == ["settings", "extract", "streams", "report"]
    assert shard_inodes(project.path / "features/layer4") == before
    with open_view(project.path / "features/avgpool") as view:
        assert view.map_shape == (512, 1, 1)
        digest = view.digest
    project.set({"train.streams": ["avgpool"], "train.epochs": 1})
    assert ran(project.dvc("repro")) == ["settings", "streams", *TRAINING]
    assert json.loads((project.path / "reports/streams.json").read_text()) == {"avgpool": digest}
    trained = load_checkpoint(project.path / "checkpoints/recurrent")
    assert [contract.tap for contract in trained.contracts] == ["layer4", "avgpool"]
    assert ran(project.dvc("repro")) == ["settings"]


def run_queue(project: Project, *, num_runs: int) -> list[str]:
    """Run the experiments that are queued, all at once; the output of each."""
    project.dvc("queue", "start", "-j", str(num_runs))
    deadline = time.monotonic() + 240

    def ended() -> list[Path]:
        found = (project.path / ".dvc/tmp/exps/run").glob("*/*.json")
        return [path for path in found if '"returncode": null' not in path.read_text()]

    while len(ended()) < num_runs or "Running" in (status := project.dvc("queue", "status")):
        assert time.monotonic() < deadline, project.dvc("queue", "status")
        time.sleep(0.5)
    assert status.count("Success") == num_runs, status
    project.dvc("queue", "stop", "--kill")  # of several workers, one may wait for ever when all is done
    return [path.with_suffix(".out").read_text() for path in ended()]


def test_queued_experiments_with_other_hidden_sizes_run_train_and_evaluate_only_and_copy_no_features(
    project: Project, tmp_path: Path
) -> None:
    shutil.copytree(project.videos, tmp_path / "elsewhere")
    project.set({"corpus.root": str(tmp_path / "elsewhere")})
    project.commit()
    before = {path.name for path in (project.path / ".framecache").rglob("*.shard")}
    project.dvc("exp", "run", "--queue", "--set-param", "train.hidden_size=16,17")
    assert [ran(output) for output in run_queue(project, num_runs=2)] == [
        ["settings", "train@recurrent", "evaluate", "report"]
    ] * 2
    # The journal has what it had; the view, the journal and DVC's cache are one file.
    assert {path.name for path in (project.path / ".framecache").rglob("*.shard")} == before
    for shard in (project.path / "features").rglob("c/*/0/0/0"):
        assert shard.stat().st_nlink == 3
    shown = json.loads(project.dvc("exp", "show", "--json"))
    assert len(shown) >= 2


def test_a_pulled_clone_extracts_nothing_and_an_added_clip_is_one_clip(
    project: Project, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    project.dvc("remote", "add", "--default", "store", str(remote))
    project.dvc("push")
    project.commit()
    clone = project.clone(tmp_path / "clone")
    clone.dvc("pull")
    assert ran(clone.dvc("repro")) == ["settings"]
    assert not (clone.path / ".framecache/contracts").exists()

    clone.add_video("added")
    clone.write_manifest([*NAMES, "added"])
    output = clone.dvc("repro", "extract")
    assert "Adopted 1 shards" in output
    assert plan_of(output) == "1 new, 8 unchanged"
    with (
        open_view(clone.path / "features/layer4") as view,
        open_view(project.path / "features/layer4") as origin,
    ):
        for name in NAMES:
            assert (view.read(name) == origin.read(name)).all()


def test_a_clone_without_cache_or_remote_runs_everything(project: Project, tmp_path: Path) -> None:
    clone = project.clone(tmp_path / "clone")
    changed = json.loads(clone.dvc("status", "--json"))
    assert changed.keys() >= {"weights", "extract", "train@recurrent", "train@baseline", "evaluate"}
    assert plan_of(clone.dvc("repro", "extract")) == "8 new, 0 unchanged"


def test_a_corrupt_clip_is_named_and_the_rest_goes_on(project: Project) -> None:
    (project.videos / "clip5.mp4").write_bytes(b"not a video" * 100)
    output = project.dvc("repro", "train@baseline")
    assert plan_of(output) == "1 source changed, 7 unchanged"
    assert "Clip clip5 is quarantined" in output
    quarantine = (project.path / "features/quarantine.csv").read_text().splitlines()
    assert len(quarantine) == 2
    assert quarantine[1].startswith("clip5,clip5.mp4,")
    assert "1 of 8 clips have no features and are left out: clip5" in output
    assert plan_of(project.extract_here()) == "7 unchanged, 1 quarantined before"


def test_a_failed_extraction_says_how_to_get_the_last_features_back(project: Project) -> None:
    before = shard_inodes(project.path / "features")
    for number in range(5):
        (project.videos / f"clip{number}.mp4").write_bytes(b"not a video" * (100 + number))
    remedy = "`dvc checkout features` brings the last one back"
    output = project.dvc("exp", "run", "extract", check=False)
    assert "5 of 8 clips can't be used" in output
    assert remedy in output
    project.dvc("checkout", "features")
    assert shard_inodes(project.path / "features") == before
    assert remedy not in project.dvc("exp", "run", "--temp", "extract", check=False)  # in a folder of its own


@pytest.fixture
def relative(project: Project) -> Project:
    """A project whose corpus's root is relative and ignored by git."""
    (project.path / "corpus").mkdir()
    project.videos.rename(project.path / "corpus/mine")
    project.set({"corpus.root": "corpus/mine"})
    with (project.path / ".gitignore").open("a") as file:
        file.write("/corpus/mine\n")
    project.commit()
    return project


def check_computed(output: str) -> None:
    assert re.fullmatch(r"8 preprocessing.crop changed: .*, 0 unchanged", plan_of(output))
    assert not complaints(output)


def complaints(output: str) -> list[str]:
    return re.findall(r"(?i).*(?:warn|error).*", output)


def test_queued_runs_find_a_relative_root_that_git_ignores_and_together_compute_each_clip_once(
    relative: Project,
) -> None:
    before = {path.name for path in (relative.path / ".framecache").rglob("*.shard")}
    changes = ("-S", "extract.preprocessing.crop=31", "-S", "train.learning_rate=0.01,0.02")
    relative.dvc("exp", "run", "--queue", *changes, "extract")
    outputs = run_queue(relative, num_runs=2)
    computed, found = sorted(outputs, key=lambda output: plan_of(output) == "8 unchanged")
    check_computed(computed)
    assert plan_of(found) == "8 unchanged"
    assert before < {path.name for path in (relative.path / ".framecache").rglob("*.shard")}
    if os.geteuid():  # root may write to read-only files: then DVC may empty one, see `protect`
        assert verify(journal_checks(relative.path / ".framecache")) == []


def test_a_run_here_finds_a_relative_root_that_git_ignores(relative: Project) -> None:
    check_computed(relative.dvc("exp", "run", "-S", "extract.preprocessing.crop=30", "extract"))


def test_a_run_elsewhere_finds_a_relative_root_that_git_ignores_and_no_command_of_dvc_complains(
    relative: Project, tmp_path: Path
) -> None:
    relative.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    relative.commit()
    change = ("-S", "extract.preprocessing.crop=29")
    check_computed(relative.dvc("exp", "run", "--temp", "-n", "temp", *change, "extract"))
    for words in (["exp", "apply", "temp"], ["checkout"], ["status"], ["push"]):
        assert not complaints(relative.dvc(*words))
    relative.commit()
    assert not complaints(relative.clone(tmp_path / "clone").dvc("pull"))


def test_dvc_shows_metrics_and_plots_and_draws_each_curve_once(project: Project) -> None:
    metrics = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    shown = [name for file in metrics.values() for name in file["data"]]
    assert shown == ["val_accuracy", "val_loss", "accuracy", "shuffled", "baseline"]
    project.dvc("plots", "show")
    page = (project.path / "dvc_plots/index.html").read_text()
    assert "Confusion" in page

    shown = json.loads(project.dvc("plots", "show", "--json"))
    assert "errors" not in shown
    drawn: Counter[tuple[str, ...]] = Counter()  # values along a curve
    for plot in (plot for plots in shown["data"].values() for plot in plots if plot["type"] == "vega"):
        curves = defaultdict(list)
        for point in plot["content"]["data"]["values"]:
            if "dvc_inferred_y_value" in point:
                curves[point["field"]].append(point["dvc_inferred_y_value"])
        drawn.update(map(tuple, curves.values()))
    for model in ("recurrent", "baseline"):
        for split in ("train", "val"):
            logged = project.path / f"dvclive/train/{model}/plots/metrics/{split}/loss.tsv"
            rows = [line.split("\t") for line in logged.read_text().splitlines()]
            losses = tuple(row[rows[0].index("loss")] for row in rows[1:])
            assert drawn[losses] == 1


def test_two_extractions_at_once_compute_each_clip_once(project: Project) -> None:
    project.set({"extract.sampling": {"every": 2}})
    with Journal(project.path / ".framecache").exclusive(on_wait=print):
        both = [
            subprocess.Popen(
                ["python", "-m", "stages.extract"],
                cwd=project.path,
                env=project.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for _ in range(2)
        ]
        for process in both:
            assert process.stdout
            assert "Waiting for another extraction" in process.stdout.readline()
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sorted(plan_of(output) for output in outputs) == [
        "8 sampling changed: all -> {'every': 2}, 0 unchanged",
        "8 unchanged",
    ]
