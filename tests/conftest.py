import os
from pathlib import Path

# Before torch: the threads of several workers, and of the stages that they start, would wait for each
# other spinning, and everything would take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from pipeline.system.files import file_lock
from tests.support.project import Project, make_project


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="random kills a case of the store's safety tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make check` leaves out what takes long, such as tests that run real stages under the real DVC.

    `make test` begins with it, so that no worker is left with it at the end.
    """
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # seconds, for which the process that hands out the tests would keep all others waiting

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


def pytest_xdist_auto_num_workers() -> int:
    """Two a core: half of the time a test waits, for the disk or for a process that it has started."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def num_kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Project:
    """A project in which `dvc repro` has run, made once for all workers; copy it, don't change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with file_lock(folder.with_suffix(".lock"), on_wait=lambda _: None):
        if not (folder / "done").exists():
            project = make_project(folder)
            project.dvc("repro")
            project.commit()
            (folder / "done").touch()
    return Project(folder / "project")


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A project of the test's own in which everything is up to date."""
    return finished.copy(tmp_path / "copy")
