"""Login: sessions, passwords, and delays after failed attempts."""

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
    """A client of the page with a login, not logged in."""
    return client_of(index, BandEncoder(), login=Login("anna", PASSWORD, clock))


def enter(client, password=PASSWORD, user="anna", query=""):
    return client.post(f"/login{query}", data={"user": user, "password": password}, headers=OWN,
                       follow_redirects=False)


def test_nothing_is_shown_before_the_login_and_the_requested_search_after_it(guarded, row):
    for path in (f"/crop/{row}", "/results.csv?a.head+colour=red", f"/sheet.html?like={row}", "/picture/x", "/page.js",
                 "/gone"):
        answer = guarded.get(path)
        assert (answer.status_code, answer.text) == (401, "not logged in; log in at /login"), path
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
def test_the_routed_path_does_not_depend_on_the_host_header(guarded, row, monkeypatch, host):
    # Starlette before 1.5 builds the address in this way, so that the path of the host `x/login?` is /login.
    monkeypatch.setattr(Request, "url", property(lambda self: URL(f"http://{self.headers['host']}{self.scope['path']}")))
    for path in (f"/crop/{row}", f"/results.csv?like={row}", "/page.js", "/picture/x"):
        answer = guarded.get(path, headers={"Host": host})
        assert (answer.status_code, answer.text) == (401, "not logged in; log in at /login"), path
    assert guarded.get("/page.css", headers={"Host": host}).text.startswith(":root {")
    sent_to = guarded.get("/?a.hat=no", headers={"Host": host}, follow_redirects=False)
    assert (sent_to.status_code, sent_to.headers["location"]) == (303, "/login?a.hat=no")


NAVIGATES = [{"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
             {"Accept": "text/html,application/xhtml+xml;q=0.9"}]  # over http from another machine


@pytest.mark.parametrize("headers", NAVIGATES)
def test_a_click_after_the_end_of_the_session_leads_to_the_login_and_back_to_the_search(guarded, headers):
    # Back to the page, not to the file: a browser would download the file and still show the login.
    for page in ("results.csv", "sheet.html"):
        sent_to = guarded.get(f"/{page}?a.head+colour=red&top=3", headers=headers, follow_redirects=False)
        assert (sent_to.status_code, sent_to.headers["location"]) == (303, "/login?a.head+colour=red&top=3")
    gone = guarded.post("/logout", headers=OWN, follow_redirects=False)
    assert (gone.status_code, gone.headers["location"]) == (303, "/login")


def test_the_login_does_not_redirect_to_other_sites(guarded):
    assert enter(guarded, query="?next=//evil.example&//evil.example").headers["location"].startswith("/?")


def test_the_session_cookie_is_protected_and_the_session_expires(index, guarded, clock, row):
    cookie = enter(guarded).headers["set-cookie"]
    assert re.match(r"cerberus-[0-9a-f]{8}=[\w-]{43}; HttpOnly; Max-Age=43200; Path=/; SameSite=lax$", cookie)
    secure = client_of(index, login=Login("anna", PASSWORD), secure=True)
    assert "; Secure" in enter(secure).headers["set-cookie"]
    clock.now += 43199
    assert guarded.get(f"/crop/{row}").status_code == 200
    clock.now += 1
    assert guarded.get(f"/crop/{row}").status_code == 401


def test_after_a_logout_the_old_cookie_is_invalid(guarded, row):
    enter(guarded)
    cookies = dict(guarded.cookies)
    for headers in ({}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):  # other pages cannot log out
        assert guarded.post("/logout", headers=headers).status_code == 403
    assert guarded.get(f"/crop/{row}").status_code == 200
    assert guarded.post("/logout", headers=OWN, follow_redirects=False).headers["location"] == "/login"
    guarded.cookies.update(cookies)
    assert guarded.get(f"/crop/{row}").status_code == 401


def test_an_unknown_token_is_not_a_session(guarded, row):
    guarded.cookies.set(guarded.app.login.cookie, "A" * 43)
    assert guarded.get(f"/crop/{row}").status_code == 401


@pytest.mark.parametrize(("user", "password"), [("anna", "wrong"), ("otto", PASSWORD), ("", ""), ("anna", ""),
                                                ("anna", PASSWORD + "x"), ("anna", PASSWORD[:-1])])
def test_a_wrong_user_and_a_wrong_password_give_the_same_response(guarded, user, password):
    answer = enter(guarded, password, user)
    assert answer.status_code == 403 and "Wrong user name or password." in answer.text
    assert "set-cookie" not in answer.headers


def test_the_delay_grows_with_failed_attempts_also_for_the_right_password(guarded, clock):
    for wait in (1, 2, 4, 8, 16, 32, 60, 60):
        assert enter(guarded, "wrong").status_code == 403
        early = enter(guarded)
        assert early.status_code == 429 and early.headers["retry-after"] == str(wait)
        assert f"try again in {'1 second' if wait == 1 else f'{wait} seconds'}." in early.text
        clock.now += wait
    assert enter(guarded).status_code == 303
    assert enter(guarded, "wrong").status_code == 403 and guarded.app.login.wait("testclient") == 1.0


def test_delays_apply_per_ipv4_address_and_per_ipv6_network(clock):
    login = Login("anna", PASSWORD, clock)
    login.enter("2001:db8:1:2::5", "anna", "wrong")
    login.enter("::ffff:10.0.0.1", "anna", "wrong")
    assert login.enter("2001:db8:1:2::6", "anna", PASSWORD) is None  # too early
    waits = {address: login.wait(address) for address in ("2001:db8:1:2:ffff::1", "2001:db8:1:3::5", "10.0.0.1",
                                                          "::ffff:10.0.0.2", "10.0.0.2")}
    assert waits == {"2001:db8:1:2:ffff::1": 1, "2001:db8:1:3::5": 0, "10.0.0.1": 1, "::ffff:10.0.0.2": 0,
                     "10.0.0.2": 0}


def test_the_displayed_delay_is_rounded_up(guarded, clock):
    enter(guarded, "wrong")
    clock.now += 0.9
    early = enter(guarded)
    assert early.status_code == 429 and early.headers["retry-after"] == "1"
    clock.now += 0.1
    assert enter(guarded).status_code == 303


def test_after_many_failed_attempts_the_rate_is_limited_for_all_clients(clock):
    login = Login("anna", PASSWORD, clock)
    for i in range(100):
        login.enter(f"2001:db8:0:{i:x}::1", "anna", "wrong")
    assert login.wait("2001:db8:1::1") == 1  # 33 attempts were counted, the others were too early
    assert login.enter("2001:db8:1::1", "anna", PASSWORD) is None
    for i in range(100, 110):
        clock.now += 1
        assert login.wait("2001:db8:1::1") == 0
        login.enter(f"2001:db8:0:{i:x}::1", "anna", "wrong")
        assert login.wait("2001:db8:1::1") == 1
    clock.now += 40
    assert login.enter("2001:db8:1::1", "anna", PASSWORD)


def test_a_new_session_only_ends_the_previous_session_of_the_same_browser(guarded, row, index):
    enter(guarded)
    first = guarded.cookies[guarded.app.login.cookie]
    other = guarded.app.login.enter("10.0.0.9", "anna", PASSWORD)
    enter(guarded)
    assert [guarded.app.login.knows(token) for token in (first, other)] == [False, True]
    enter(guarded, "wrong")  # does not end a session
    assert guarded.get(f"/crop/{row}").status_code == 200


def test_the_memory_for_sessions_and_failed_attempts_is_limited(clock):
    login = Login("anna", PASSWORD, clock)
    tokens = [login.enter("10.0.0.1", "anna", PASSWORD) for _ in range(65)]
    assert [login.knows(token) for token in (tokens[0], tokens[1], tokens[-1])] == [False, True, True]
    for i in range(4097):
        clock.now += 1
        login.enter(f"10.1.{i // 256}.{i % 256}", "anna", "wrong")
    clock.now += 60
    for address in ("10.1.0.1", "10.1.0.0"):
        login.enter(address, "anna", "wrong")
    assert (login.wait("10.1.0.0"), login.wait("10.1.0.1")) == (1, 2)  # the oldest entry was removed


def test_a_login_is_only_accepted_from_the_page_itself_and_its_size_is_limited(guarded):
    answer = guarded.post("/login", data={"user": "anna", "password": PASSWORD},
                          headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403 and "requests from other pages are not allowed" in answer.text
    answer = guarded.post("/login", content=b"user=anna&password=" + b"x" * 5000, headers=OWN)
    assert answer.status_code == 413


def test_with_a_login_all_host_names_are_accepted(guarded):
    assert guarded.get("/login", headers={"Host": "gallery.example"}).status_code == 200


def test_the_password_is_read_from_the_environment_and_removed_there_or_from_the_terminal(monkeypatch):
    monkeypatch.setenv("CERBERUS_PASSWORD", PASSWORD)
    assert ask_password() == PASSWORD and "CERBERUS_PASSWORD" not in os.environ
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="--user: needs a password; set CERBERUS_PASSWORD in the environment"):
        ask_password()
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("getpass.getpass", lambda prompt: "typed in")
    assert ask_password() == "typed in"


@pytest.mark.parametrize(("user", "password", "message"), [
    ("", PASSWORD, "--user: is empty, expected a user name"),
    ("anna", "short", "CERBERUS_PASSWORD: the password has 5 characters, expected at least 8")])
def test_a_login_without_a_name_or_with_a_short_password_is_rejected(user, password, message):
    with pytest.raises(ValueError, match=message):
        Login(user, password)
