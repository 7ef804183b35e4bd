"""`cerberus serve`: access control, messages, and requests to the running server."""

import functools
import os
import queue
import re
import runpy
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from cerberus_plugin import cli
from cerberus_plugin.search.gallery import GalleryIndex, Pace
from cerberus_plugin.search.web import serving
from cerberus_plugin.search.web.serving import ServerConfig

import pytest
import uvicorn
from support.galleries import PlainEncoder, draw_many
from support.processes import WITHOUT_TORCH, fetch, until

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The folder of an index without attributes, which can be opened without the vocabulary class of the tests."""
    folder = tmp_path_factory.mktemp("serving")
    draw_many(folder / "crops", 3)
    GalleryIndex.build(folder / "index", folder / "crops", PlainEncoder(), pace=Pace(progress=False)).close()
    return folder / "index"


@pytest.mark.parametrize(("options", "message"), [
    ({"host": "0.0.0.0"}, "--host 0.0.0.0: other machines can reach this address; .*--user NAME .*CERBERUS_PASSWORD.*"
                          "--without-login"),
    ({"host": "::"}, "--host ::: other machines can reach"),
    ({"host": ""}, "--host : is not an address of this machine"),
    ({"port": 65536}, "--port: is 65536, expected a number from 0 to 65535"),
    ({"user": "anna", "without_login": True}, "--user and --without-login: .*not both"),
    ({"certificate": "a.pem"}, "--certificate and --key: one is missing; https needs both"),
    ({"certificate": "a.pem", "key": "b.pem"}, "--certificate: a.pem not found; give a PEM file"),
    ({"host": "no such host"}, "--host no such host: is not an address of this machine")])
def test_invalid_and_insecure_configurations_are_rejected(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        ServerConfig(**options)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("127.8.8.8", True),
                                             ("::1", True), ("0.0.0.0", False), ("192.0.2.7", False)])
def test_only_loopback_addresses_are_local(host, local):
    assert ServerConfig(host, without_login=True).is_local is local


def test_a_host_name_is_resolved_only_once(monkeypatch):
    meant = iter(["127.0.0.1", "0.0.0.0"])
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **options: [(socket.AF_INET, 1, 6, "", (next(meant), 0))])
    with ServerConfig("gallery.lab", port=0).listen() as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_other_machines_have_access_with_a_login_or_if_explicitly_allowed(monkeypatch):
    assert ServerConfig("0.0.0.0", without_login=True).login() is None
    monkeypatch.setenv("CERBERUS_PASSWORD", "correct horse")
    assert ServerConfig("0.0.0.0", user="anna").login().enter("10.0.0.1", "anna", "correct horse")


def test_the_address_can_be_opened_in_a_browser(tmp_path):
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).touch()
    assert ServerConfig().address(8000) == "http://127.0.0.1:8000/"
    assert ServerConfig("::1").address(81) == "http://[::1]:81/"
    assert ServerConfig("0.0.0.0", without_login=True).address(81) == f"http://{socket.gethostname()}:81/"
    assert ServerConfig(certificate=str(tmp_path / "a.pem"), key=str(tmp_path / "b.pem")).address(443).startswith("https://")


def test_a_port_in_use_is_reported(index):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(
            OSError, match=r"--port \d+: cannot listen there .*give another --port"):
        serving.serve(GalleryIndex.open(index), None, ServerConfig(port=taken.getsockname()[1]))


@pytest.mark.parametrize(("options", "warned"), [({}, False), ({"host": "0.0.0.0", "without_login": True}, True)])
def test_the_page_is_opened_on_request_and_http_on_a_network_prints_a_warning(index, monkeypatch, capsys, options,
                                                                                warned):
    def interrupted(self, sockets):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr("uvicorn.Server.run", interrupted)
    monkeypatch.setattr("webbrowser.open", opened.append)
    place = ServerConfig(port=0, **options)
    serving.serve(GalleryIndex.open(index), None, place, open_browser=True)
    told = capsys.readouterr()
    assert len(opened) == 1 and told.out == f"3 images: {opened[0]}   (press Ctrl-C to stop)\nstopped\n"
    assert ("over http, others on the network can read passwords" in told.err) is warned
    serving.serve(GalleryIndex.open(index), None, place)
    assert len(opened) == 1


def test_connections_beyond_the_limit_get_status_503(index, monkeypatch):
    servers, opened = [], queue.SimpleQueue()
    run = uvicorn.Server.run
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: servers.append(self) or run(self, sockets))
    monkeypatch.setattr("webbrowser.open", opened.put)
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 3)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(serving.serve, GalleryIndex.open(index), None, ServerConfig(port=0), open_browser=True)
        port = urlsplit(opened.get(timeout=120)).port
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        until(lambda: len(servers[0].server_state.connections) == 2)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            fetch(f"http://127.0.0.1:{port}/page.css")
        silent.pop().close()
        until(lambda: len(servers[0].server_state.connections) < 2)
        assert fetch(f"http://127.0.0.1:{port}/page.css").status == 200
        silent.pop().close()
        servers[0].should_exit = True
        done.result(120)


def test_invalid_certificates_are_rejected(index, tmp_path):
    for name in ("a.pem", "b.pem"):
        (tmp_path / name).write_text("no certificate")
    place = ServerConfig(certificate=str(tmp_path / "a.pem"), key=str(tmp_path / "b.pem"), port=0)
    with pytest.raises(ValueError, match="cannot be used .*; expected the PEM files"):
        serving.serve(GalleryIndex.open(index), None, place)


def test_missing_packages_are_reported_with_the_requirements_of_the_extra(monkeypatch):
    extra = runpy.run_path(str(ROOT / "setup.py"))
    assert sorted(serving.NEEDED.values()) == sorted([*extra["SERVE"], next(
        line for line in extra["INSTALL_REQUIRES"] if line.startswith("Jinja2"))])
    serving.check_packages()
    monkeypatch.setattr(serving, "find_spec", lambda name: None if name in ("starlette", "uvicorn") else name)
    with pytest.raises(ModuleNotFoundError, match='pip install "starlette>=1.5,<2" "uvicorn>=0.34,<1"$'):
        serving.check_packages()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--host", "0.0.0.0"], "cerberus: --host 0.0.0.0: other machines can reach"),
    (["--model", "gone.onnx"], "cerberus: gone.onnx: not found"),
    (["--user", "anna"], "cerberus: --user: needs a password")])
def test_errors_of_the_command_are_reported_in_one_line(index, arguments, message, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SystemExit, match=message):
        cli.main(["serve", str(index), "--port", "0", *arguments])


@pytest.fixture
def started(index):
    """Start the command with options and environment variables; returns the process and its first line of output."""
    processes = []

    def start(*options, in_background=False, **environment):
        code = f"{WITHOUT_TORCH}\nfrom cerberus_plugin import cli\ncli.main(sys.argv[1:])"
        process = subprocess.Popen([sys.executable, "-c", code, "serve", str(index), "--port", "0", *options], cwd=ROOT,
                                   text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN if
                                                                in_background else signal.SIG_DFL),
                                   env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
        processes.append(process)
        told = process.stdout.readline()
        return process, told

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("in_background", [False, True])
def test_the_command_prints_the_address_logs_no_queries_and_stops_when_interrupted(started, index, in_background):
    """Processes that a script starts in the background ignore interrupts by default."""
    row = GalleryIndex.open(index).sample(1)[0]
    process, told = started(in_background=in_background)
    address = re.fullmatch(r"3 images: (http://127\.0\.0\.1:\d+/)   \(press Ctrl-C to stop\)\n", told)[1]
    with fetch(f"{address}?like={row}") as answer:
        assert answer.read().count(b"<article>") == 3 and "server" not in answer.headers
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to create a certificate")
def test_over_https_nothing_is_shown_without_a_login(started, tmp_path):
    certificate, key = tmp_path / "a.pem", tmp_path / "b.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    _, told = started("--user", "anna", "--certificate", str(certificate), "--key", str(key),
                      CERBERUS_PASSWORD="correct horse")
    address = told.split()[2]
    trusting = ssl.create_default_context(cafile=certificate)
    assert address.startswith("https://")
    with fetch(address, context=trusting) as answer:
        assert answer.url == f"{address}login" and b"Log in" in answer.read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        fetch(f"{address}crop/1", context=trusting)
