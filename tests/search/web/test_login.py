"""Who may see the page: sessions, passwords, and what failed tries cost."""

import os
import re

from cerberus_plugin.search.web.login import Login, ask_password

import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from support.galleries import BandEncoder
from support.pages import OWN, PASSWORD, client_of, drawn_gallery, picture


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return drawn_gallery(tmp_path_factory.mktemp("login"), 4)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def guarded(index, clock):
    """The page with a login, nobody in yet."""
    return client_of(index, BandEncoder(), login=Login("anna", PASSWORD, clock))


def enter(client, password=PASSWORD, user="anna", query=""):
    return client.post(f"/login{query}", data={"user": user, "password": password}, headers=OWN,
                       follow_redirects=False)


def test_nothing_is_shown_before_the_login_and_the_search_goes_on_after_it(guarded, row):
    for path in (f"/crop/{row}", "/results.csv?a.head+colour=red", f"/sheet.html?like={row}", "/picture/x", "/page.js",
                 "/gone"):
        answer = guarded.get(path)
        assert (answer.status_code, answer.text) == (401, "log in at /login"), path
    assert guarded.post("/picture", content=picture(), headers=OWN).status_code == 401
    sent_to = guarded.get("/?a.head+colour=red&top=3", follow_redirects=False)
    assert (sent_to.status_code, sent_to.headers["location"]) == (303, "/login?a.head+colour=red&top=3")
    form = guarded.get(sent_to.headers["location"])
    assert 'action="/login?a.head+colour=red&amp;top=3"' in form.text and "/crop/" not in form.text
    entered = enter(guarded, query="?a.head+colour=red&top=3")
    assert (entered.status_code, entered.headers["location"]) == (303, "/?a.head+colour=red&top=3")
    assert guarded.get(entered.headers["location"]).text.count("<article>") == 3
    assert guarded.get(f"/crop/{row}").status_code == 200 and "Log out" in guarded.get("/").text


@pytest.mark.parametrize("host", ["x/login?", "x/login#", "a/page.css?", "127.0.0.1/login?"])
def test_where_a_request_goes_is_not_told_by_the_name_of_its_host(guarded, row, monkeypatch, host):
    # As Starlette before 1.5 makes the address, so that the path of `x/login?` is /login.
    monkeypatch.setattr(Request, "url", property(lambda self: URL(f"http://{self.headers['host']}{self.scope['path']}")))
    for path in (f"/crop/{row}", f"/results.csv?like={row}", "/page.js", "/picture/x"):
        answer = guarded.get(path, headers={"Host": host})
        assert (answer.status_code, answer.text) == (401, "log in at /login"), path
    assert guarded.get("/page.css", headers={"Host": host}).text.startswith(":root {")
    sent_to = guarded.get("/?a.hat=no", headers={"Host": host}, follow_redirects=False)
    assert (sent_to.status_code, sent_to.headers["location"]) == (303, "/login?a.hat=no")


NAVIGATES = [{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
             {"Accept": "text/html,application/xhtml+xml;q=0.9"}]  # over http from another machine


@pytest.mark.parametrize("headers", NAVIGATES)
def test_who_clicks_after_the_session_has_ended_logs_in_and_comes_back_to_the_search(guarded, headers):
    # To the page and not to the file: a browser would load that, and go on showing the login.
    for page in ("results.csv", "sheet.html"):
        sent_to = guarded.get(f"/{page}?a.head+colour=red&top=3", headers=headers, follow_redirects=False)
        assert (sent_to.status_code, sent_to.headers["location"]) == (303, "/login?a.head+colour=red&top=3")
    gone = guarded.post("/logout", headers=OWN, follow_redirects=False)
    assert (gone.status_code, gone.headers["location"]) == (303, "/login")


def test_the_login_leads_nowhere_else(guarded):
    assert enter(guarded, query="?next=//evil.example&//evil.example").headers["location"].startswith("/?")


def test_a_session_is_kept_from_scripts_and_other_sites_and_ends(index, guarded, clock, row):
    cookie = enter(guarded).headers["set-cookie"]
    assert re.match(r"cerberus-[0-9a-f]{8}=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=lax$", cookie)
    secure = client_of(index, login=Login("anna", PASSWORD), secure=True)
    assert "; Secure" in enter(secure).headers["set-cookie"]
    clock.now += 43199
    assert guarded.get(f"/crop/{row}").status_code == 200
    clock.now += 1
    assert guarded.get(f"/crop/{row}").status_code == 401


def test_a_session_that_was_left_is_dead_though_its_cookie_is_kept(guarded, row):
    enter(guarded)
    cookies = dict(guarded.cookies)
    for headers in ({}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):  # a page elsewhere ends none
        assert guarded.post("/logout", headers=headers).status_code == 403
    assert guarded.get(f"/crop/{row}").status_code == 200
    assert guarded.post("/logout", headers=OWN, follow_redirects=False).headers["location"] == "/login"
    guarded.cookies.update(cookies)
    assert guarded.get(f"/crop/{row}").status_code == 401


def test_a_made_up_session_is_none(guarded, row):
    guarded.cookies.set(guarded.app.login.cookie, "A" * 43)
    assert guarded.get(f"/crop/{row}").status_code == 401


@pytest.mark.parametrize(("user", "password"), [("anna", "wrong"), ("otto", PASSWORD), ("", ""), ("anna", ""),
                                                ("anna", PASSWORD + "x"), ("anna", PASSWORD[:-1])])
def test_a_wrong_user_and_a_wrong_password_are_answered_alike(guarded, user, password):
    answer = enter(guarded, password, user)
    assert answer.status_code == 403 and "User or password is wrong." in answer.text
    assert "set-cookie" not in answer.headers


def test_each_failed_try_makes_the_next_wait_longer_and_the_right_password_waits_too(guarded, clock):
    for wait in (1, 2, 4, 8, 16, 32, 60, 60):
        assert enter(guarded, "wrong").status_code == 403
        early = enter(guarded)
        assert early.status_code == 429 and early.headers["retry-after"] == str(wait)
        assert f"try again in {wait} seconds" in early.text
        clock.now += wait
    assert enter(guarded).status_code == 303
    assert enter(guarded, "wrong").status_code == 403 and guarded.app.login.wait("testclient") == 1.0


def test_waiting_is_by_client_and_by_network_where_a_client_has_one(clock):
    login = Login("anna", PASSWORD, clock)
    login.enter("2001:db8:1:2::5", "anna", "wrong")
    login.enter("::ffff:10.0.0.1", "anna", "wrong")
    assert login.enter("2001:db8:1:2::6", "anna", PASSWORD) is None  # too early
    waits = {address: login.wait(address) for address in ("2001:db8:1:2:ffff::1", "2001:db8:1:3::5", "10.0.0.1",
                                                          "::ffff:10.0.0.2", "10.0.0.2")}
    assert waits == {"2001:db8:1:2:ffff::1": 1, "2001:db8:1:3::5": 0, "10.0.0.1": 1, "::ffff:10.0.0.2": 0,
                     "10.0.0.2": 0}


def test_seconds_to_wait_are_never_told_too_few(guarded, clock):
    enter(guarded, "wrong")
    clock.now += 0.9
    early = enter(guarded)
    assert early.status_code == 429 and early.headers["retry-after"] == "1"
    clock.now += 0.1
    assert enter(guarded).status_code == 303


def test_after_many_failed_tries_all_clients_wait_for_one_another(clock):
    login = Login("anna", PASSWORD, clock)
    for i in range(100):
        login.enter(f"2001:db8:0:{i:x}::1", "anna", "wrong")
    assert login.wait("2001:db8:1::1") == 1  # 33 of them were tries, the others came too early
    assert login.enter("2001:db8:1::1", "anna", PASSWORD) is None
    for i in range(100, 110):
        clock.now += 1
        assert login.wait("2001:db8:1::1") == 0
        login.enter(f"2001:db8:0:{i:x}::1", "anna", "wrong")
        assert login.wait("2001:db8:1::1") == 1
    clock.now += 40
    assert login.enter("2001:db8:1::1", "anna", PASSWORD)


def test_a_new_session_ends_the_one_before_in_the_same_browser_alone(guarded, row, index):
    enter(guarded)
    first = guarded.cookies[guarded.app.login.cookie]
    other = guarded.app.login.enter("10.0.0.9", "anna", PASSWORD)
    enter(guarded)
    assert [guarded.app.login.knows(token) for token in (first, other)] == [False, True]
    enter(guarded, "wrong")  # ends none
    assert guarded.get(f"/crop/{row}").status_code == 200


def test_sessions_and_failed_tries_take_no_memory_without_end(clock):
    login = Login("anna", PASSWORD, clock)
    tokens = [login.enter("10.0.0.1", "anna", PASSWORD) for _ in range(65)]
    assert [login.knows(token) for token in (tokens[0], tokens[1], tokens[-1])] == [False, True, True]
    for i in range(4097):
        clock.now += 1
        login.enter(f"10.1.{i // 256}.{i % 256}", "anna", "wrong")
    clock.now += 60
    for address in ("10.1.0.1", "10.1.0.0"):
        login.enter(address, "anna", "wrong")
    assert (login.wait("10.1.0.0"), login.wait("10.1.0.1")) == (1, 2)  # the oldest was forgotten


def test_a_login_is_taken_from_the_page_itself_alone_and_not_read_without_end(guarded):
    answer = guarded.post("/login", data={"user": "anna", "password": PASSWORD},
                          headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403 and answer.text == "asked for by a page from elsewhere; open this page itself"
    answer = guarded.post("/login", content=b"user=anna&password=" + b"x" * 5000, headers=OWN)
    assert answer.status_code == 413


def test_with_a_login_the_page_goes_by_any_name(guarded):
    assert guarded.get("/login", headers={"Host": "gallery.example"}).status_code == 200


def test_a_password_comes_from_the_environment_which_is_not_handed_on_or_from_the_terminal(monkeypatch):
    monkeypatch.setenv("CERBERUS_PASSWORD", PASSWORD)
    assert ask_password() == PASSWORD and "CERBERUS_PASSWORD" not in os.environ
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="--user: needs a password; set CERBERUS_PASSWORD in the environment"):
        ask_password()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed in")
    assert ask_password() == "typed in"


@pytest.mark.parametrize(("user", "password", "message"), [
    ("", PASSWORD, "--user: is empty, expected a name to log in by"),
    ("anna", "short", "CERBERUS_PASSWORD: the password has 5 characters, expected at least 8")])
def test_a_login_without_a_name_or_with_a_short_password_is_refused(user, password, message):
    with pytest.raises(ValueError, match=message):
        Login(user, password)
