"""Numbers with a noun in the singular or plural form."""

from cerberus_plugin.utils.text import counted

import pytest


@pytest.mark.parametrize(("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")])
def test_the_noun_is_singular_for_one_only(number, text):
    assert counted(number, "image") == text


def test_an_irregular_plural_is_given():
    assert [counted(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"]
