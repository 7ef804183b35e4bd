"""What several tests of the page share."""

import pytest


@pytest.fixture
def row(index):
    """A picture of the gallery."""
    return index.sample(1)[0]
