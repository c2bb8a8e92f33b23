"""Fixtures shared by the tests."""

import pytest


@pytest.fixture(scope="session")
def root(pytestconfig):
    """The folder of the project (a pathlib.Path)."""
    return pytestconfig.rootpath
