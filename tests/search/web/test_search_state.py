"""The state of a search as an address: parsed and written without loss, and the links of the page."""

import re

from cerberus_plugin.search.gallery import Query
from cerberus_plugin.search.web.search_state import Groups, SearchState

import pytest
from support.galleries import BandEncoder
from support.pages import client_of, drawn_gallery, found, links


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return drawn_gallery(tmp_path_factory.mktemp("asking"), 12)


@pytest.fixture(scope="module")
def client(many):
    return client_of(many, BandEncoder())


def test_an_address_is_parsed_and_written_without_loss():
    pairs = [("picture", "token"), ("a.upper colour", "red and blue"), ("a.hat", "no"), ("w.head", "0.5"),
             ("out", "lower"), ("out", "upper"), ("changed", "1"), ("reliable", "0.9"), ("rate", "0.001"),
             ("top", "48")]
    state = SearchState.read(pairs)
    assert state.pairs() == pairs and state.words["upper colour"] == "red and blue"
    assert state.address() == ("/?picture=token&a.upper+colour=red+and+blue&a.hat=no&w.head=0.5&out=lower&out=upper"
                               "&changed=1&reliable=0.9&rate=0.001&top=48")
    assert SearchState().address() == "/"
    for name, number in (("rate", "0.00012345678"), ("reliable", "0.9999999"), ("w.head", "0.1234567"),
                         ("w.head", "3.0000000000000004"), ("rate", "1e-10")):
        assert SearchState.read([(name, number)]).pairs() == [(name, number)]


def test_an_attribute_of_a_result_is_added_to_the_query_and_removed_again():
    state = SearchState(words={"hat": "no"}, out=("lower",), top=48)
    assert state.toggle("upper colour", "red").words == {"hat": "no", "upper colour": "red"}
    assert state.toggle("hat", "yes").words == {"hat": "yes"}
    assert state.toggle("hat", "no") == SearchState(out=("lower",), top=48)


def test_more_like_this_replaces_attributes_and_image_and_keeps_the_other_options():
    kept = {"weights": {"head": 2.0}, "out": ("lower",), "changed": True, "top": 48}
    state = SearchState(words={"hat": "no"}, picture="token", **kept)
    assert state.more_like(7) == SearchState(like=7, **kept)


def test_a_group_is_ignored_and_included_again_for_both_reasons():
    groups = Groups(("head", "upper", "lower", "identity", "carrying"), ("head", "identity"))
    assert SearchState().switch("lower", groups).left_out(groups) == ["lower"]
    assert SearchState(out=("lower", "head")).switch("lower", groups).left_out(groups) == ["head"]
    changed = SearchState(changed=True, out=("head",))
    assert changed.left_out(groups) == ["head", "upper", "lower", "carrying"]
    assert changed.switch("upper", groups).left_out(groups) == ["head", "lower", "carrying"]
    assert changed.switch("head", groups).left_out(groups) == ["upper", "lower", "carrying"]


@pytest.mark.parametrize(("weight", "less", "more"), [
    (1, 0.5, 2), (10, 5, 16), (16, 8, None), (0.1, 0.0625, 0.2), (0.0625, None, 0.125), (0.01, None, 0.0625),
    (0, None, 0.0625)])
def test_the_weight_of_a_group_is_halved_and_doubled_within_limits(weight, less, more):
    state = SearchState(weights={"head": weight})
    found = [state.weigh("head", factor) for factor in (0.5, 2)]
    assert [each and each.weights["head"] for each in found] == [less, more]


def test_weights_can_be_changed_if_several_groups_are_compared(client):
    def offered(address):
        return re.findall(r'aria-label="(\w+) the weight of (\w+)"', client.get(address).text)

    assert offered("/?a.head+colour=red") == [] == offered("/?a.head+colour=red&a.upper+colour=red&out=upper")
    assert offered("/?a.head+colour=red&a.upper+colour=red&w.head=16&w.lower=2") == [
        ("halve", "head"), ("halve", "upper"), ("double", "upper")]


def test_conditions_that_the_gallery_does_not_support_can_be_removed_from_the_query(many, client):
    row = many.sample(1)[0]
    for address, chip, rest in (
            ("like=99999&a.head+colour=red", "like deleted image", "/?a.head+colour=red"),
            ("picture=abc&a.head+colour=red", "like uploaded image", "/?a.head+colour=red"),
            ("a.head+colour=red&a.shoes=red", "shoes: red", "/?a.head+colour=red"),
            ("a.head+colour=red&out=shoes&w.boots=2&changed=1", "group shoes",
             "/?a.head+colour=red&w.boots=2&changed=1"),
            ("a.head+colour=red&out=shoes&w.boots=2&w.shoes=3", "group boots",
             "/?a.head+colour=red&w.shoes=3&out=shoes")):
        page = client.get(f"/?{address}")
        assert page.status_code == 400 and links(page, chip) == [rest] and "<img" not in page.text, address
    page = client.get(f"/?like={row}&a.shoes=red")  # the query image is still shown
    assert page.status_code == 400 and page.text.count(f'src="/crop/{row}"') == 2


def test_the_links_of_a_page_have_the_right_addresses(many, client):
    page = client.get("/?a.head+colour=red&top=3")
    first, _ = found(page)[0]
    assert links(page, "more like this")[0] == f"/?like={first}&top=3"
    assert links(page, "head colour: red") == ["/?top=3"]  # the chip removes the attribute
    assert links(page, "CSV") == ["/results.csv?a.head+colour=red&top=3"]
    read = many.search(Query(words={"head colour": "red"}), 1)[0].attributes
    told = {name: answer.value for name, answer in read.items() if not answer.abstained}
    assert told
    for name, value in told.items():
        target = SearchState(words={"head colour": "red"}, top=3).toggle(name, value).address()
        assert target in links(page, value), name


@pytest.mark.parametrize("name", ["a.x{}", "w.x{}", "w.head", "out=x{}", "a.head colour", "top", "{}", "a.x{}=&b"])
@pytest.mark.parametrize("page", ["/", "/results.csv", "/sheet.html"])
def test_the_size_of_a_page_does_not_grow_quadratically_with_the_address(client, page, name):
    """Checked by the size of the response, not by time."""
    for count in (10, 100, 300, 2000):
        query = "&".join(f"{name.format(i)}{'' if '=' in name else '='}1" for i in range(count))
        answer = client.get(f"{page}?{query}", follow_redirects=False)
        assert answer.status_code in ((400, 414, 303, 200) if count == 10 else (400, 414)), (name, count)
        assert len(answer.content) < (200_000 if count == 10 else 2_000), (name, count)


@pytest.mark.parametrize("value", ["x" * 3800, "<&\"'" * 200, "é" * 600])
def test_a_long_value_is_rejected_without_many_copies_of_it(client, value):
    for name in ("a.head colour", "a.shoes", "out", "w.shoes", "picture", "w.head", "top"):
        answer = client.get("/", params={"a.upper colour": "red", name: value})
        assert answer.status_code in (400, 414) and len(answer.content) < 200_000, name


def test_a_repeated_colour_does_not_make_the_page_longer(client):
    once = client.get("/?a.head+colour=red&top=200")
    many_times = client.get("/?a.head+colour=" + "+and+".join(["red"] * 400) + "&top=200")
    assert many_times.text == once.text and found(once)


@pytest.mark.parametrize("path", ["/results.csv", "/crop/1", "/page.css", "/login", "/nowhere"])
def test_an_address_that_is_too_long_is_rejected_before_it_is_parsed(client, path):
    assert client.get(f"{path}?{'x' * 4100}").status_code == 414
    assert client.get(f"{path}/{'1' * 5000}").status_code == 414
