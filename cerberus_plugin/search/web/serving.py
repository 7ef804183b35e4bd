"""The web server of `cerberus serve`."""

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

from ...utils.text import counted
from .login import PASSWORD, Login, ask_password

if TYPE_CHECKING:
    from ..gallery import GalleryIndex
    from ..portable.encoder import Encoder

NEEDED = {"starlette": "starlette>=1.5,<2", "uvicorn": "uvicorn>=0.34,<1", "jinja2": "Jinja2>=3.1,<4"}
MOST_CONNECTIONS = 512  # a browser uses six


@dataclass(frozen=True)
class ServerConfig:
    """Configuration of the web server.

    Attributes:
        host, port: address or name of this machine, and port; 0 for a free port.
        user: user name of the login, "" for access without a login.
        without_login: whether other machines may have access without a login.
        certificate, key: PEM files for https, "" for http.

    Raises:
        FileNotFoundError: if a PEM file does not exist.
        OSError: if the host is not an address of this machine.
        ValueError: if the options contradict each other, or other machines would have access without a login and
            `without_login` is not set.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    user: str = ""
    without_login: bool = False
    certificate: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port: is {self.port}, expected a number from 0 to 65535; 0 for a free port")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("--certificate and --key: one is missing; https needs both")
        for option, path in (("--certificate", self.certificate), ("--key", self.key)):
            if path and not Path(path).is_file():
                raise FileNotFoundError(f"{option}: {path} not found; give a PEM file")
        if self.user and self.without_login:
            raise ValueError("--user and --without-login: give one of them, not both")
        if not (self.user or self.without_login or self.is_local):
            raise ValueError(f"--host {self.host}: other machines can reach this address; require a login with --user "
                             f"NAME (the password is read from {PASSWORD} or the terminal), or allow access to all "
                             "images with --without-login")

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the page."""
        return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback
                   for *_, address in self.addresses)

    @cached_property
    def addresses(self) -> list[tuple]:
        """The addresses of the host, resolved once, so that the checked address is used."""
        try:
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            raise OSError(f"--host {self.host}: is not an address of this machine ({error.strerror})") from error

    @property
    def names(self) -> set[str]:
        """The host names of the page, see `Guard`."""
        return {self.host, socket.gethostname(), socket.getfqdn()}

    def login(self) -> Login | None:
        """Create the login, and read its password; None without a user.

        Raises:
            ValueError: if there is no password, or it is too short.
        """
        return Login(self.user, ask_password()) if self.user else None

    def listen(self) -> socket.socket:
        """Open the listening socket.

        Raises:
            OSError: if the port is in use.
        """
        family, *_, address = self.addresses[0]
        try:
            return socket.create_server(address, family=family)
        except OSError as error:
            raise OSError(f"--host {self.host} --port {self.port}: cannot listen there ({error.strerror}); another "
                          "program may use the port, give another --port") from error

    def address(self, port: int) -> str:
        """Return the address to open in a browser.

        Args:
            port: on which the server listens.

        Examples:
            >>> ServerConfig().address(8000)
            'http://127.0.0.1:8000/'
        """
        host = self.host
        if host in ("0.0.0.0", "::", ""):
            host = socket.gethostname()
        return f"{'https' if self.certificate else 'http'}://{f'[{host}]' if ':' in host else host}:{port}/"


def check_packages() -> None:
    """Check that the packages of the web server are installed.

    Raises:
        ModuleNotFoundError: with the pip command if they are not.
    """
    missing = [requirement for name, requirement in NEEDED.items() if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"serve: packages are missing: pip install {' '.join(map(repr, missing))}".replace(
            "'", '"'))


def serve(index: GalleryIndex, encoder: Encoder | None, config: ServerConfig, login: Login | None = None,
          open_browser: bool = False, verbose: bool = False) -> None:
    """Serve the search page of a gallery until it is interrupted.

    Args:
        index: to search.
        encoder: model of the index; None to serve without uploads.
        config: address, port and certificate.
        login: of `config`.
        open_browser: open the page in a browser.
        verbose: write every request to the terminal; requests contain the queries.

    Raises:
        OSError: if the port is in use.
        ValueError: if the certificate is invalid, or the encoder is not the model of the index.
    """
    import uvicorn

    from .app import create_app
    from .connections import ImpatientProtocol, Listener

    app = create_app(index, encoder, login=login, hosts=config.names, secure=bool(config.certificate))
    # Forwarded-for headers are ignored: with them a client could try passwords from ever new addresses.
    server = uvicorn.Server(uvicorn.Config(
        app, log_level="info" if verbose else "warning", access_log=verbose, loop="asyncio", http=ImpatientProtocol,
        ws="none", lifespan="off", proxy_headers=False, server_header=False, ssl_certfile=config.certificate or None,
        ssl_keyfile=config.key or None, timeout_graceful_shutdown=5, limit_concurrency=MOST_CONNECTIONS))
    try:
        server.config.load()
    except ssl.SSLError as error:
        raise ValueError(f"--certificate {config.certificate} --key {config.key}: cannot be used ({error}); expected "
                         "the PEM files of a certificate and its private key") from error
    with Listener(config.listen()) as listening:
        address = config.address(listening.getsockname()[1])
        if not config.is_local and not config.certificate:
            print("warning: over http, others on the network can read passwords and images; use https with "
                  "--certificate and --key", file=sys.stderr)
        # uvicorn stops when interrupted. Python also raises the exception, except in a process that a script has
        # started in the background.
        with contextlib.suppress(KeyboardInterrupt):
            print(f"{counted(len(index), 'image')}: {address}   (press Ctrl-C to stop)", flush=True)
            if open_browser:
                webbrowser.open(address)
            server.run(sockets=[listening])
        print("stopped")
