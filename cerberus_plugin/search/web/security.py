"""Checks before every page (host name, origin, session) and the headers that restrict browsers.

Starlette's TrustedHostMiddleware takes a fixed list of names; here every IP address is a valid host as well, since the
addresses of a machine may change or be translated, and only a name can be pointed at it by somebody else.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .login import Login
from .search_state import LONGEST

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
                               "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # under no-referrer a form would not tell where it comes from
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
OPEN = ("/login", "/page.css", "/icon.svg")  # without a session


class Guard:
    """ASGI middleware that answers only requests for an own host name, from the page itself, with a valid session.

    Args:
        login: None where everybody may.
        hosts: names by which the page may be called, beside addresses of the form 127.0.0.1. A page elsewhere whose
            name is made to point here would come by that name; it could read all that needs no login.
    """

    def __init__(self, app: ASGIApp, login: Login | None = None, hosts: Collection[str] = ()) -> None:
        self.app, self.login = app, login
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        length = len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        # Pages hold their own address in each of their links: a long one would make a page of many times its size.
        too_long = PlainTextResponse(f"the address has {length} bytes, expected at most {LONGEST}; start at /", 414)
        answer = too_long if length > LONGEST else self._refusal(request) or self.app
        await answer(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self.login is None and not self._own(host):
            return PlainTextResponse(f"{host}: not a name of this page; call it by its address, or by "
                                     f"{', '.join(sorted(self.hosts))}", 400)
        if not _from_the_page(request, host):
            return PlainTextResponse("asked for by a page from elsewhere; open this page itself", 403)
        path = request.scope["path"]  # that which is routed; older Starlettes make `request.url` of the Host as well
        if self.login is None or path in OPEN or self.login.knows(request.cookies.get(self.login.cookie)):
            return None
        if path == "/logout":
            return RedirectResponse("/login", 303)
        if request.method == "GET" and (path == "/" or _navigates(request)):
            return RedirectResponse(with_query("/login", request), 303)
        return PlainTextResponse("log in at /login", 401)

    def _own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name in self.hosts


def with_query(path: str, request: Request) -> str:
    """An address here, with all that was asked for."""
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _from_the_page(request: Request, host: str) -> bool:
    """Whether a page of this origin sent a request, or a person did by an address or a link."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if request.method in ("GET", "HEAD"):
        to_show_it = _navigates(request) and request.headers.get("sec-fetch-dest") == "document"
        return site in (None, "same-origin", "none") or to_show_it
    # Sec-Fetch-Site cannot be made up by a page, but is sent to https and loopback only. Neither: no browser of today.
    return site == "same-origin" if site is not None else urlsplit(origin or "").netloc.lower() == host.lower() != ""


def _navigates(request: Request) -> bool:
    """Whether a browser goes to this address, and does not load it for another one."""
    mode = request.headers.get("sec-fetch-mode")  # sent to https and loopback only
    return mode == "navigate" if mode is not None else "text/html" in request.headers.get("accept", "")
