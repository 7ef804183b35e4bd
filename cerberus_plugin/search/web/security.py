"""Checks of every request (host name, origin, session), and security headers.

Starlette's TrustedHostMiddleware only accepts a fixed list of names. `Guard` also accepts every IP address, since the
addresses of a machine can change or be translated, and DNS rebinding is only possible with names.
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
    "Referrer-Policy": "same-origin",  # with no-referrer, forms would be sent without an origin
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
OPEN = ("/login", "/page.css", "/icon.svg")  # without a session


class Guard:
    """ASGI middleware that only accepts requests with a known host name, from the page itself, with a valid session.

    Args:
        app: the application.
        login: required login; None for access without a login.
        hosts: accepted host names, in addition to localhost and IP addresses. Without this check, a foreign page could
            make its name point to this machine (DNS rebinding) and read everything that needs no login.
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

        # Each link of a page contains the address of the page, so a long address would create a very large page.
        too_long = PlainTextResponse(f"the address has {length} bytes, expected at most {LONGEST}; start again at /",
                                     414)
        answer = too_long if length > LONGEST else self._refusal(request) or self.app
        await answer(scope, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if self.login is None and not self._own(host):
            return PlainTextResponse(f"{host}: not a host name of this page; use its IP address, or "
                                     f"{', '.join(sorted(self.hosts))}", 400)
        if not _from_the_page(request, host):
            return PlainTextResponse("requests from other pages are not allowed; open this page directly", 403)
        path = request.scope["path"]  # the routed path; `request.url` of older Starlettes depends on the Host
        if self.login is None or path in OPEN or self.login.knows(request.cookies.get(self.login.cookie)):
            return None
        if path == "/logout":
            return RedirectResponse("/login", 303)
        if request.method == "GET" and (path == "/" or _navigates(request)):
            return RedirectResponse(with_query("/login", request), 303)
        return PlainTextResponse("not logged in; log in at /login", 401)

    def _own(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host).lower()
        try:
            return bool(ipaddress.ip_address(name.strip("[]")))
        except ValueError:
            return name in self.hosts


def with_query(path: str, request: Request) -> str:
    """Return a path with the query string of a request.

    Args:
        path: of this page.
        request: whose query string is appended.
    """
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _from_the_page(request: Request, host: str) -> bool:
    """Return whether a request comes from a page of this origin, or from navigation to an address or link."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if request.method in ("GET", "HEAD"):
        to_show_it = _navigates(request) and request.headers.get("sec-fetch-dest") == "document"
        return site in (None, "same-origin", "none") or to_show_it
    # Pages cannot forge Sec-Fetch-Site, but it is only sent to https and loopback; else browsers send Origin.
    return site == "same-origin" if site is not None else urlsplit(origin or "").netloc.lower() == host.lower() != ""


def _navigates(request: Request) -> bool:
    """Return whether a browser navigates to this address, and does not load it as part of another page."""
    mode = request.headers.get("sec-fetch-mode")  # only sent to https and loopback
    return mode == "navigate" if mode is not None else "text/html" in request.headers.get("accept", "")
