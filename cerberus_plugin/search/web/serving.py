"""The web server of `cerberus serve`: its configuration, its socket, and its life."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import sys
import webbrowser
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .login import PASSWORD, Login, ask_password

if TYPE_CHECKING:
    from ..gallery import GalleryIndex
    from ..portable.encoder import Encoder

NEEDED = {"starlette": "starlette>=1.5,<2", "uvicorn": "uvicorn>=0.34,<1", "jinja2": "Jinja2>=3.1,<4"}
MOST_CONNECTIONS = 512  # a browser keeps six


@dataclass(frozen=True)
class ServerConfig:
    """Where the page is served and who may see it; refuses a configuration that lets strangers in.

    Attributes:
        host, port: an address or a name of this machine, and a port; port 0 takes a free one.
        user: who may log in, "" for everybody.   without_login: whether everybody is meant.
        certificate, key: PEM files; with them it is served by https.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    user: str = ""
    without_login: bool = False
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port: is {self.port}, expected a number from 0 to 65535; 0 takes a free one")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("--certificate and --key: one is missing; https needs both")
        for option, path in (("--certificate", self.certificate), ("--key", self.key)):
            if path and not Path(path).is_file():
                raise FileNotFoundError(f"{option}: {path} not found; give a PEM file")
        if self.user and self.without_login:
            raise ValueError("--user and --without-login: say who may log in, or that nobody has to, not both")
        if not (self.user or self.without_login or self.is_local):
            raise ValueError(f"--host {self.host}: other machines can reach it; say who may log in by --user NAME (the "
                             f"password comes from {PASSWORD} or the terminal), or that everybody may see all pictures "
                             "by --without-login")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
                   for *_, address in self.addresses)

    @cached_property
    def addresses(self) -> list[tuple]:
        """Addresses of the host, resolved once, so that the one that was checked is the one that is listened on."""
        try:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(f"--host {self.host}: is no address of this machine ({error.strerror})") from error

    @property
    def names(self) -> set[str]:
        """Host names of the page, see `Guard`."""
        return {self.host, socket.gethostname(), socket.getfqdn()}

    def login(self) -> Login | None:
        """Asks for the password, if one is needed."""
        return Login(self.user, ask_password()) if self.user else None

    def listen(self) -> socket.socket:
        family, *_, address = self.addresses[0]
        try:
            return socket.create_server(address, family=family)
        except OSError as error:
            raise OSError(f"--host {self.host} --port {self.port}: cannot be listened on ({error.strerror}); another "
                          "program may have it: give another --port") from error

    def address(self, port: int) -> str:
        """The address to open in a browser."""
        host = self.host
        if host in ("0.0.0.0", "::", ""):
            host = socket.gethostname()
        return f"{'https' if self.certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def check_packages() -> None:
    missing = [requirement for name, requirement in NEEDED.items() if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"serve: packages are missing: pip install {' '.join(map(repr, missing))}".replace(
            "'", '"'))


def serve(index: GalleryIndex, encoder: Encoder | None, config: ServerConfig, login: Login | None = None,
          open_browser: bool = False, verbose: bool = False) -> None:
    """Serve the page of a gallery until it is interrupted.

    Args:
        login: that of `config`.
        verbose: write every request to the terminal; addresses hold what is searched for.
    """
    import uvicorn

    from .app import create_app
    from .connections import ImpatientProtocol, Listener

    app = create_app(index, encoder, login=login, hosts=config.names, secure=bool(config.certificate))
    # Forwarded-for headers are not believed: whoever sends them could try passwords under ever new addresses.
    server = uvicorn.Server(uvicorn.Config(
        app, log_level="info" if verbose else "warning", access_log=verbose, loop="asyncio", http=ImpatientProtocol,
        ws="none", lifespan="off", proxy_headers=False, server_header=False, ssl_certfile=config.certificate or None,
        ssl_keyfile=config.key or None, timeout_graceful_shutdown=5, limit_concurrency=MOST_CONNECTIONS))
    try:
        server.config.load()
    except ssl.SSLError as error:
        raise ValueError(f"--certificate {config.certificate} --key {config.key}: cannot be used ({error}); expected "
                         "PEM files that belong together") from error
    with Listener(config.listen()) as listening:
        address = config.address(listening.getsockname()[1])
        if not config.is_local and not config.certificate:
            print("over http others on the network can read passwords and pictures; --certificate and --key turn "
                  "https on", file=sys.stderr)
        print(f"{len(index):,} pictures: {address}   Ctrl-C stops it", flush=True)
        if open_browser:
            webbrowser.open(address)
        # The server stops by itself when interrupted; the exception follows where Python handles the signal as well,
        # which it does not in a program that a script has started in the background.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        print("stopped")
