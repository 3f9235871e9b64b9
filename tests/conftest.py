from pathlib import Path

import pytest

from tests.project import Project, make_project


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="random kills a case of the store's safety tests")


@pytest.fixture(scope="session")
def num_kills(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--kills"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which `dvc repro` has run; copy it, don't change it."""
    project = make_project(tmp_path_factory.mktemp("finished"))
    project.dvc("repro")
    project.commit()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A project of the test's own in which everything is up to date."""
    return finished.copy(tmp_path / "copy")
