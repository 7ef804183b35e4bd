"""Fixtures of the tests of the web page."""

import pytest


@pytest.fixture
def row(index):
    """The id of a gallery image."""
    return index.sample(1)[0]
