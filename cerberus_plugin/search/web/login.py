"""Login for the page: one user with a password, sessions that expire, and delays after failed attempts.

Sessions and not HTTP Basic: a browser sends a Basic password with every picture it loads, keeps it until it is closed,
and cannot log out. Sessions are kept here and not in a signed cookie as by Starlette's SessionMiddleware: after a
logout a copy of such a cookie would still be valid. The cookie holds a random token only.
"""

from __future__ import annotations

import getpass
import hashlib
import ipaddress
import os
import secrets
import sys
import time
from collections import OrderedDict
from collections.abc import Callable

PASSWORD = "CERBERUS_PASSWORD"
SHORTEST = 8
LASTS = 12 * 3600  # seconds
LONGEST_WAIT = 60.0  # seconds
AT_ONCE, PACE = 32, 1.0  # failed tries of all clients together, and seconds for each one beyond
MOST_SESSIONS, MOST_CLIENTS = 64, 4096


class Login:
    """One user. All methods are called from the thread of the event loop alone.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, user: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        if not user:
            raise ValueError("--user: is empty, expected a name to log in by, such as --user anna")
        if len(password) < SHORTEST:
            raise ValueError(f"{PASSWORD}: the password has {len(password)} characters, expected at least {SHORTEST}")
        self._expected = _digests(user, password)
        self._clock = clock
        self._sessions: OrderedDict[str, float] = OrderedDict()  # token: when it ends
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # client: how often, when again
        self._paid = 0.0  # when the failed tries of all clients have had their time
        # Cookies do not know ports: pages of two galleries on one machine need names of their own.
        self.cookie = f"cerberus-{secrets.token_hex(4)}"

    def wait(self, address: str) -> float:
        """Seconds until this client may try; where many have failed, all clients wait, for one may have many addresses.
        """
        own = self._failed.get(client_of(address), (0, 0.0))[1]
        return max(0.0, own - self._clock(), self._paid - AT_ONCE * PACE - self._clock())

    def enter(self, address: str, user: str, password: str, before: str | None = None) -> str | None:
        """The token of a new session; None if user or password is wrong, or if it is too early to try again.

        Args:
            before: the token of the session that the new one takes the place of, if there is one.
        """
        client = client_of(address)
        if self.wait(address):
            return None
        # Both are compared whatever the first gives, and in a time that does not tell how much is right.
        right = [secrets.compare_digest(*pair) for pair in zip(self._expected, _digests(user, password))]
        if not all(right):
            count = self._failed.pop(client, (0, 0.0))[0] + 1
            self._failed[client] = count, self._clock() + min(2.0 ** (count - 1), LONGEST_WAIT)
            self._paid = max(self._paid, self._clock()) + PACE
            if len(self._failed) > MOST_CLIENTS:
                self._failed.popitem(last=False)
            return None
        self._failed.pop(client, None)
        self.leave(before)
        token = secrets.token_urlsafe(32)
        self._sessions[token] = self._clock() + LASTS
        if len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return token

    def knows(self, token: str | None) -> bool:
        return token is not None and self._sessions.get(token, 0.0) > self._clock()

    def leave(self, token: str | None) -> None:
        self._sessions.pop(token or "", None)


def ask_password() -> str:
    """From the environment, out of which it is taken, or from the terminal; never from the command line, which others
    can read."""
    password = os.environ.pop(PASSWORD, "")
    if not password and sys.stdin is not None and sys.stdin.isatty():
        password = getpass.getpass("password for the page: ")
    if not password:
        raise ValueError(f"--user: needs a password; set {PASSWORD} in the environment, or start from a terminal, "
                         "which asks for it")
    return password


def _digests(*texts: str) -> list[bytes]:
    return [hashlib.sha256(text.encode()).digest() for text in texts]


def client_of(address: str) -> str:
    """Who is slowed down: an address, or the whole network of an IPv6 one, since a client has as many as it likes."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    found = getattr(found, "ipv4_mapped", None) or found
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
