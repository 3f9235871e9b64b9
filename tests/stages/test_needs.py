"""What gc keeps for a repository that is damaged: a revision that can't be read never ends it for good."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.contract import FeatureContract
from pipeline.errors import StoreError
from pipeline.store.upkeep.gc import Need
from stages.project.asked import fitting
from stages.project.cache import out_digest
from stages.project.damage import damaged_objects
from stages.project.needs import needs
from tests.support.features import make_contract

pytestmark = pytest.mark.slow

FIRST, SECOND, MERGED = "1" * 32, "2" * 32, "3" * 32  # md5s of three features/ folders
BROKEN_YAML = "stages:\n\t- :\n"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def params(every: int) -> str:
    preprocessing = {"resize": 32, "crop": 32}
    extract = {"taps": ["layer4"], "sampling": {"every": every}, "preprocessing": preprocessing}
    return yaml.safe_dump({"weights": {"arch": "resnet18"}, "extract": extract})


def lock(md5: str) -> str:
    return yaml.safe_dump({"stages": {"extract": {"outs": [{"path": "features", "md5": f"{md5}.dir"}]}}})


def conflict(ours: str, theirs: str) -> str:
    return f"<<<<<<< HEAD\n{ours}||||||| base\nold\n=======\n{theirs}>>>>>>> other\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that is the working directory; DVC's cache has what three features/ folders list."""
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet", "--initial-branch", "main")
    git("config", "user.email", "test@example.com")
    git("config", "user.name", "Test")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    for md5 in (FIRST, SECOND, MERGED):
        entries = [{"relpath": f"layer4/records/shard{md5[0]}.record", "md5": "a" * 32}]
        path = tmp_path / ".dvc/cache/files/md5" / md5[:2] / f"{md5[2:]}.dir"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(entries))
    return tmp_path


def commit(lock_text: str, params_text: str) -> str:
    """Its short name."""
    Path("dvc.lock").write_text(lock_text)
    Path("params.yaml").write_text(params_text)
    git("add", "dvc.lock", "params.yaml")
    git("commit", "--quiet", "--message", "state")
    return git("rev-parse", "HEAD")[:7]


def contract(every: int) -> FeatureContract:
    return make_contract(sampling={"every": every})


def named(found: list[Need], text: str) -> list[Need]:
    return [need for need in found if text in need.name]


def test_a_commit_with_a_merge_conflict_is_named_and_needs_both_sides(project: Path) -> None:
    bad = commit(conflict(lock(FIRST), lock(SECOND)), conflict(params(2), params(3)))
    commit(lock(MERGED), params(4))
    (need,) = named(needs(project), f"revision {bad} (its dvc.lock can't be read)")
    assert need.shard_ids == {"shard1", "shard2"}
    assert need.fits is not None
    assert [need.fits(contract(every)) for every in (2, 3, 4)] == [True, True, False]
    assert [other.shard_ids for other in needs(project) if not other.fits] == [{"shard3"}, {"shard3"}]


def test_of_a_commit_of_which_nothing_can_be_read_everything_is_kept(project: Path) -> None:
    bad = commit(BROKEN_YAML, BROKEN_YAML)
    commit(lock(MERGED), params(4))
    (need,) = named(needs(project), f"revision {bad}")
    assert "its params.yaml can't be read, so everything is kept" in need.name
    assert need.fits is not None
    assert need.fits(contract(9))


def test_broken_parameters_matter_only_where_the_list_of_features_is_lost(project: Path) -> None:
    commit(lock(FIRST), BROKEN_YAML)
    lost = commit(lock("9" * 32), params(2))
    commit(lock(MERGED), params(4))
    found = needs(project)
    assert {"shard1"} in [need.shard_ids for need in found if not need.fits]
    (need,) = named(found, f"revision {lost} (its list of features is not in DVC's cache)")
    assert need.fits is not None
    assert [need.fits(contract(every)) for every in (2, 9)] == [True, False]


def lose_a_ref(_: str) -> str:
    Path(".git/refs/heads/lost").write_text("0123456789" * 4 + "\n")
    return "refs/heads/lost: git can't read it, so everything is kept"


def empty_a_ref(_: str) -> str:
    Path(".git/refs/heads/empty").touch()
    return "refs/heads/empty: git can't read it, so everything is kept"


def lose_an_experiment(_: str) -> str:
    Path(".git/refs/exps/ab/cdef").mkdir(parents=True)
    Path(".git/refs/exps/ab/cdef/mine").write_text("0123456789" * 4 + "\n")
    return "refs/exps/ab/cdef/mine: git can't read it, so everything is kept"


def lose_a_queued_task(_: str) -> str:
    Path(".git/refs/exps/celery").mkdir(parents=True)
    Path(".git/refs/exps/celery/stash").write_text("0123456789" * 4 + "\n")
    return "refs/exps/celery/stash: git can't read it, so everything is kept"


def object_file(old: str) -> Path:
    name = git("rev-parse", f"{old}:dvc.lock")
    return Path(".git/objects", name[:2], name[2:])


def lose_an_object(old: str) -> str:
    object_file(old).unlink()
    return f"revision {old} (its dvc.lock can't be read)"


def damage_an_object(old: str) -> str:
    path = object_file(old)
    path.chmod(0o644)
    path.write_bytes(b"zeros after a power cut")
    return f"revision {old} (its dvc.lock can't be read)"


@pytest.mark.parametrize(
    "damage",
    [lose_a_ref, empty_a_ref, lose_an_experiment, lose_a_queued_task, lose_an_object, damage_an_object],
)
def test_what_git_has_lost_is_named_and_the_rest_is_read(project: Path, damage: Callable[[str], str]) -> None:
    old = commit(lock(FIRST), params(2))
    git("branch", "other")
    commit(lock(MERGED), params(4))
    expected = damage(old)
    found = needs(project)
    (need,) = named(found, expected)
    assert need.fits is not None
    assert need.fits(contract(2))
    assert {"shard3"} in [each.shard_ids for each in found if not each.fits]
    if "refs/" in expected:
        assert {"shard1"} in [each.shard_ids for each in found if not each.fits]


def test_every_stash_is_needed_and_not_the_last_alone(project: Path) -> None:
    commit(lock(MERGED), params(4))
    for md5 in (FIRST, SECOND):
        Path("dvc.lock").write_text(lock(md5))
        git("stash", "--quiet")
    found = [need.shard_ids for need in needs(project) if not need.fits]
    assert {"shard1"} in found
    assert {"shard2"} in found


def test_a_workspace_in_conflict_is_named_and_needs_both_sides(project: Path) -> None:
    commit(lock(MERGED), params(4))
    Path("dvc.lock").write_text(conflict(lock(FIRST), lock(SECOND)))
    Path("params.yaml").write_text(conflict(params(2), params(3)))
    (need,) = named(needs(project), "dvc.lock of")
    assert need.name.endswith("(its dvc.lock can't be read)")
    assert need.shard_ids == {"shard1", "shard2"}
    (need,) = named(needs(project), f"workspace {project}")
    assert need.fits is not None
    assert [need.fits(contract(every)) for every in (2, 3, 4)] == [True, True, False]


def test_experiments_that_run_now_are_workspaces_too(project: Path) -> None:
    commit(lock(MERGED), params(4))
    for name, every in {"tmp1": 5, "standalone/tmp2": 6}.items():
        folder = project / ".dvc/tmp/exps" / name
        folder.mkdir(parents=True)
        (folder / "params.yaml").write_text(params(every))
        (need,) = named(needs(project), f"workspace {folder}")
        assert need.fits is not None
        assert [need.fits(contract(number)) for number in (4, every)] == [False, True]


# {changes of a contract: whether it may be what is asked for}
ASKED = [
    # A key that is not there had the default of its own time.
    ("{weights: {arch: resnet18}}", {}, True),
    ("{weights: {arch: resnet18}}", {"tap": "layer1", "dtype": "float32", "sampling": {"count": 3}}, True),
    ("{weights: {arch: resnet18}}", {"arch": "resnet34"}, False),
    ("{weights: {source: random:0}, extract: {taps: [layer4]}}", {"arch": "vgg11"}, True),
    ("{weights: {source: random:0}, extract: {taps: [layer4]}}", {"tap": "layer3"}, False),
    ("{weights: , extract: {taps: [layer3, layer4], dtype: float32}}", {"arch": "vgg11"}, False),
    ("{weights: , extract: {taps: [layer3, layer4], dtype: float32}}", {"dtype": "float32"}, True),
    ("{train: {task: regression}}", {"arch": "vgg11", "tap": "block1", "pooling": "avg"}, True),
    ("{extract: {precision: bfloat16}}", {"precision": "bfloat16", "backend": "inductor"}, True),
    ("{extract: {precision: bfloat16}}", {}, False),
    # Likewise inside preprocessing and sampling.
    ("{extract: {preprocessing: {resize: 48}}}", {"preprocessing": {"resize": 48, "crop": 24}}, True),
    ("{extract: {preprocessing: {resize: 48}}}", {}, False),
    (
        "{extract: {preprocessing: {resize: [32, 48]}}}",
        {"preprocessing": {"resize": (32, 48), "crop": 24}},
        True,
    ),
    ("{extract: {preprocessing: {resize: null}}}", {"preprocessing": {"resize": None, "crop": 32}}, True),
    ("{extract: {preprocessing: {resize: null}}}", {}, False),
    ("{extract: {preprocessing: {interpolation: bicubic}}}", {}, False),
    ("{extract: {preprocessing: {crop: 32}}}", {}, True),
    ("{extract: {sampling: all}}", {}, True),
    ("{extract: {sampling: all}}", {"sampling": {"max_frames": 9}}, False),
    ("{extract: {sampling: {every: 2}}}", {"sampling": {"every": 2, "max_frames": 9}}, True),
    ("{extract: {sampling: {every: 2}}}", {"sampling": {"every": 3}}, False),
    ("{extract: {sampling: {every: '2'}}}", {"sampling": {"every": 2}}, True),
    ("{extract: {sampling: {max_frames: 9}}}", {"sampling": {"fps": 5, "max_frames": 9}}, True),
    ("{extract: {sampling: {max_frames: 9}}}", {}, False),
    # What no contract knows of, then or now, tells nothing.
    ("{extract: {device: cuda, batch_size: 0, dask: {local: -1}, store: {commit_seconds: x}}}", {}, True),
    ("{extract: {preprocessing: {crop: 32, sharpen: 3}, sampling: {shuffle: true}}}", {}, True),
    ("{extract: {preprocessing: {crop: 33, sharpen: 3}}}", {}, False),
]


@pytest.mark.parametrize(("text", "changes", "expected"), ASKED)
def test_only_what_parameters_name_tells_contracts_apart(
    text: str, changes: dict[str, object], expected: bool
) -> None:
    assert fitting(text.encode())(make_contract(**changes)) is expected


PARTIAL = (
    "{weights: {arch: resnet18},"
    " extract: {taps: [layer4], sampling: all, preprocessing: {resize: 32, crop: 32}}}"
)


def fits(project: Path, name: str) -> list[bool]:
    """Whether a need covers what today's defaults give, and what another default would have given."""
    (need,) = [need for need in needs(project) if need.name.startswith(name)]
    assert need.fits is not None
    return [need.fits(make_contract()), need.fits(make_contract(dtype="float32"))]


def test_a_revision_or_queued_experiment_that_lacks_a_key_may_need_any_value_of_it(project: Path) -> None:
    lost = commit(lock("9" * 32), PARTIAL)
    git("update-ref", "--create-reflog", "refs/exps/celery/stash", "HEAD")
    commit(lock(MERGED), params(4))
    assert fits(project, f"revision {lost}") == [True, True]
    assert fits(project, f"queued experiment {lost}") == [True, True]


def test_what_this_workspace_lacks_has_the_default_of_its_code(project: Path) -> None:
    commit(lock(MERGED), PARTIAL)
    assert fits(project, f"workspace {project}") == [True, False]
    running = project / ".dvc/tmp/exps/tmp1"
    running.mkdir(parents=True)
    (running / "params.yaml").write_text(PARTIAL)  # of code that may be another
    assert fits(project, f"workspace {running}") == [True, True]
    Path("params.yaml").write_text("{weights: {arch: resnet18}, extract: {sampling: {every: 2}}}")
    (need,) = [need for need in needs(project) if need.name == f"workspace {project}"]
    assert need.fits is not None
    default = {"preprocessing": {"resize": 256, "crop": 224}, "sampling": {"every": 2}}
    assert need.fits(make_contract(**default))
    assert not need.fits(make_contract(**{**default, "sampling": {"every": 2, "max_frames": 9}}))
    assert not need.fits(make_contract(**{**default, "tap": "layer3"}))


def test_what_the_workspace_of_another_project_lacks_may_be_anything(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(lock(MERGED), PARTIAL)
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    assert fits(project, f"workspace {project}") == [True, True]


def test_features_are_found_in_a_lock_whatever_its_stages_are_called(project: Path) -> None:
    stages = yaml.safe_load(lock(FIRST))["stages"]
    training = {"deps": [{"path": "features/layer4", "md5": f"{SECOND}.dir"}]}
    stages = {"train@recurrent": training, "train@baseline": training, "features@all": stages["extract"]}
    commit(yaml.safe_dump({"schema": "2.0", "stages": stages}), params(4))
    assert [need.shard_ids for need in needs(project) if not need.fits] == [{"shard1"}] * 2


def test_a_damaged_copy_is_found_by_a_lock_in_conflict(project: Path) -> None:
    copies = []
    for md5 in (FIRST, SECOND):
        entries = [{"relpath": "layer4/index.arrow", "md5": md5}]
        cache = project / ".dvc/cache/files/md5" / md5[:2]
        (cache / f"{md5[2:]}.dir").write_text(json.dumps(entries))
        (cache / md5[2:]).write_bytes(b"not what the name says")
        copies.append(cache / md5[2:])
    Path("dvc.lock").write_text(conflict(lock(FIRST), lock(SECOND)))
    view = Path("features")
    assert damaged_objects([view / "layer4/index.arrow"], view=view) == copies


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD\n", "a: [", "[1]", "stages: [1]", "stages: {a: 1}", "stages: {a: {outs: [1]}}", "\x00"],
)
def test_a_lock_that_can_not_be_read_is_a_sentence(text: str) -> None:
    with pytest.raises(StoreError, match=r"dvc.lock can't be read, perhaps for a merge conflict"):
        out_digest(text.encode(), Path("features"))
    assert out_digest(b"", Path("features")) is None
    assert out_digest(b"stages: null", Path("features")) is None


@pytest.mark.parametrize("marker", ["=======\n", "||||||| base\nold\n=======\n"])
def test_both_sides_of_a_conflict_in_the_parameters_fit(marker: str) -> None:
    fits = fitting(f"<<<<<<< HEAD\n{params(2)}{marker}{params(3)}>>>>>>> other".encode())
    assert [fits(contract(every)) for every in (2, 3, 4)] == [True, True, False]
