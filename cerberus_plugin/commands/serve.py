"""`cerberus serve`: search in a web browser."""

from __future__ import annotations

import argparse

from ..utils.commands import add_blur_faces
from .shared import add_index, add_model, encoder_of, open_index


def add(jobs) -> None:
    serve = jobs.add_parser("serve", help="search in a web browser",
                            description="Serves a web page to search a gallery by images, by attributes, or by both. "
                            "Only this machine can reach the page unless --host is given. Uploaded images are kept in "
                            "memory only. Without a model, attributes and gallery images can be searched for, but no "
                            "images can be uploaded.")
    serve.set_defaults(job=run)
    add_index(serve)
    add_model(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on, 0.0.0.0 for all addresses of this "
                       "machine (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8000, help="port number, 0 for a free one (default: %(default)s)")
    serve.add_argument("--user", default="", metavar="NAME", help="require a login with this user name; the password "
                       "is read from the environment variable CERBERUS_PASSWORD, or from the terminal")
    serve.add_argument("--without-login", action="store_true", help="let other machines see all images without a login")
    serve.add_argument("--certificate", default="", metavar="FILE", help="PEM file of the certificate, for https")
    serve.add_argument("--key", default="", metavar="FILE", help="PEM file of the private key, for https")
    serve.add_argument("--open", action="store_true", help="open the page in a browser")
    serve.add_argument("--verbose", action="store_true", help="write every request to the terminal")
    add_blur_faces(serve)


def run(args: argparse.Namespace) -> None:
    from ..search.web import serving

    serving.check_packages()
    config = serving.ServerConfig(args.host, args.port, args.user, args.without_login, args.certificate, args.key)
    index = open_index(args)
    login = config.login()
    encoder = encoder_of(args.run, args.model) if args.run or args.model else None
    serving.serve(index, encoder, config, login, args.open, args.verbose)
