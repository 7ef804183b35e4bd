"""Login for the page: one user with a password, sessions that expire, and delays after failed attempts.

HTTP Basic authentication is not used, since browsers send its password with every image, store it until they are
closed, and cannot log out. Sessions are stored in the server and not in a signed cookie, as in Starlette's
SessionMiddleware, since a copy of such a cookie would still be valid after a logout. The cookie only contains a random
token.
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
SHORTEST = 8  # characters of a password
LASTS = 12 * 3600  # seconds of a session
LONGEST_WAIT = 60.0  # seconds after failed attempts of one client
AT_ONCE, PACE = 32, 1.0  # failed attempts of all clients without a delay, and seconds per further attempt
MOST_SESSIONS, MOST_CLIENTS = 64, 4096


class Login:
    """The login of one user. All methods must be called in the thread of the event loop.

    Args:
        user: name of the user.
        password: of the user.
        clock: returns monotonic seconds.

    Raises:
        ValueError: if the user name is empty, or the password has fewer than `SHORTEST` characters.
    """

    def __init__(self, user: str, password: str, clock: Callable[[], float] = time.monotonic) -> None:
        if not user:
            raise ValueError("--user: is empty, expected a user name, such as --user anna")
        if len(password) < SHORTEST:
            raise ValueError(f"{PASSWORD}: the password has {len(password)} characters, expected at least {SHORTEST}")
        self._expected = _digests(user, password)
        self._clock = clock
        self._sessions: OrderedDict[str, float] = OrderedDict()  # token: end of the session
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()  # client: attempts, time of the next one
        self._paid = 0.0  # time until which the failed attempts of all clients count
        # Cookies are shared between ports, so pages of two galleries on one machine need different names.
        self.cookie = f"cerberus-{secrets.token_hex(4)}"

    def wait(self, address: str) -> float:
        """Return the seconds until a client may log in.

        After `AT_ONCE` failed attempts, the limit of one attempt per `PACE` seconds applies to all clients together,
        since one client can have many addresses.

        Args:
            address: IP address of the client.
        """
        own = self._failed.get(client_of(address), (0, 0.0))[1]
        return max(0.0, own - self._clock(), self._paid - AT_ONCE * PACE - self._clock())

    def enter(self, address: str, user: str, password: str, before: str | None = None) -> str | None:
        """Log in.

        Args:
            address: IP address of the client.
            user, password: of the login form.
            before: token of the previous session of this browser, which is ended; None without one.

        Returns:
            the token of a new session; None if user or password is wrong, or if the client has to wait.
        """
        client = client_of(address)
        if self.wait(address):
            return None
        # Both are always compared, in a time that does not depend on their contents.
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
        """Return whether a token belongs to a valid session."""
        return token is not None and self._sessions.get(token, 0.0) > self._clock()

    def leave(self, token: str | None) -> None:
        """End the session of a token, if there is one."""
        self._sessions.pop(token or "", None)


def ask_password() -> str:
    """Read the password from the environment, where it is then removed, or from the terminal.

    The command line is not used, since other users of the machine can read it.

    Raises:
        ValueError: if there is no password.
    """
    password = os.environ.pop(PASSWORD, "")
    if not password and sys.stdin is not None and sys.stdin.isatty():
        password = getpass.getpass("password for the page: ")
    if not password:
        raise ValueError(f"--user: needs a password; set {PASSWORD} in the environment, or start the command in a "
                         "terminal to type it")
    return password


def _digests(*texts: str) -> list[bytes]:
    return [hashlib.sha256(text.encode()).digest() for text in texts]


def client_of(address: str) -> str:
    """Return the client of an IP address, to count attempts and connections.

    Args:
        address: IPv4 or IPv6 address.

    Returns:
        the address; for IPv6 its /64 network, since one client can use all addresses of it.

    Examples:
        >>> client_of("10.0.0.1"), client_of("::ffff:10.0.0.1"), client_of("2001:db8::5")
        ('10.0.0.1', '10.0.0.1', '2001:db8::/64')
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    found = getattr(found, "ipv4_mapped", None) or found
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
