"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest

from kdlib.engine.environment import quiet_environment

# A file, not the folder: Git leaves the folder in place if Python put its cache there.
NO_ANSWERS = (
    ""
    if (Path(__file__).parent / "answers" / "__init__.py").exists()
    else "the checks of the exercises are not tested: their right and wrong answers, "
    "tests/answers/, are not part of this copy"
)
collect_ignore = ["answers"]  # it holds no tests


def pytest_configure():
    """The tests and the processes that they start say nothing about a home they cannot write."""
    os.environ.update(quiet_environment())


def pytest_report_header():
    """Skipped tests are not listed by default, so the header says what is missing."""
    return NO_ANSWERS or None


@pytest.fixture(autouse=True)
def own_variables():
    """A test that leaves a variable of the kit behind would change every notebook after it."""

    def seen():
        return {name: value for name, value in os.environ.items() if name.startswith("KDLIB_")}

    before = seen()
    yield
    assert seen() == before, "this test left a variable of the kit behind"


@pytest.fixture(scope="session")
def root(pytestconfig):
    """The folder of the project (a pathlib.Path)."""
    return pytestconfig.rootpath


@pytest.fixture(scope="session")
def site_files():
    """The files of the site, {path: content}, made once for all tests that look at them."""
    from kdlib import site

    return site.build()
