"""Fixtures shared by the tests."""

import os

import pytest

from kdlib.engine.environment import quiet_environment


def pytest_configure():
    """The tests and the processes that they start say nothing about a home they cannot write."""
    os.environ.update(quiet_environment())


@pytest.fixture(scope="session")
def root(pytestconfig):
    """The folder of the project (a pathlib.Path)."""
    return pytestconfig.rootpath
