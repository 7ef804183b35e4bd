"""The web application of `cerberus serve`: search page, crops, uploads and downloads."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from ...utils.images import Limits, Unreadable, read_image
from ...utils.text import counted
from ..gallery import GalleryIndex, Hit, Query, contact_sheet
from ..gallery.thumbnails import thumbnail
from .limiter import ConcurrencyLimiter
from .login import LASTS, Login
from .search_state import Groups, SearchState, exact
from .security import Guard, with_query
from .uploads import LIMITS, Uploads

if TYPE_CHECKING:
    from ..portable.encoder import Encoder

STATIC = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
SENDING, DECODING = 16, 4  # concurrent uploads, and threads that decode them
ASKING, SEARCHING = 32, 4  # concurrent searches, running or waiting, and threads that run them
PATIENCE = 60  # seconds for a request body to arrive
FORM_BYTES = 4096  # maximum size of a login form
KEPT = 600  # seconds for which browsers cache the static files
OTHER_NAMES = 16  # parameters of an address in addition to attributes and groups
TOPS = (12, 24, 48, 96, 200)


def create_app(index: GalleryIndex, encoder: Encoder | None = None, *, login: Login | None = None,
               limits: Limits | None = None, hosts: Collection[str] = (), secure: bool = False) -> Guard:
    """Create the search page of a gallery as an ASGI application.

    Args:
        index: to search.
        encoder: model of the index; without it images cannot be uploaded.
        login: required login; None for access without a login.
        limits: of uploaded images; `uploads.LIMITS` if None.
        hosts: names of this machine, see `Guard`.
        secure: whether the page is served by https; cookies are then only sent by https.

    Raises:
        ValueError: if the encoder is not the model of the index.
    """
    pages = _Pages(index, encoder, login, limits or LIMITS, secure)
    routes = [Route("/", pages.search), Route("/results.csv", pages.csv), Route("/sheet.html", pages.sheet),
              Route("/crop/{row:int}", pages.crop), Route("/picture", pages.take, methods=["POST"]),
              Route("/picture/{token}", pages.picture),
              *(Route(f"/{name}", _file(name, kind)) for name, kind in STATIC.items())]
    if login is not None:
        routes += [Route("/login", pages.login_form), Route("/login", pages.enter, methods=["POST"]),
                   Route("/logout", pages.leave, methods=["POST"])]
    return Guard(Starlette(routes=routes, exception_handlers={
        HTTPException: _refused, ClientDisconnect: _left, Exception: _broken}), login, hosts)


class _Pages:
    """The endpoints of the page.

    Starlette runs functions that are not coroutines in threads. Searches and uploads have separate threads, so that
    they do not block other requests.
    """

    def __init__(self, index: GalleryIndex, encoder: Encoder | None, login: Login | None, limits: Limits,
                 secure: bool) -> None:
        self.index, self.login, self.secure = index, login, secure
        self.uploads = None if encoder is None else Uploads(index, encoder, limits)
        self.sending = ConcurrencyLimiter(DECODING, SENDING,
                                          f"too many uploads at the moment ({SENDING}); try again in a few seconds")
        self.searching = ConcurrencyLimiter(SEARCHING, ASKING,
                                            f"too many searches at the moment ({ASKING}); try again in a few seconds")
        self.templates = contact_sheet.templates(Path(__file__).parent)
        self.templates.globals["exact"] = exact

    @property
    def groups(self) -> Groups:
        return Groups(self.index.shape.groups, self.index.lasting_groups)

    # Search.

    async def search(self, request: Request) -> Response:
        if not request.query_params:  # the start page, without a search
            return await run_in_threadpool(self._search, request)
        return await self._in_turn(self._search, request)

    async def csv(self, request: Request) -> Response:
        return await self._in_turn(self._csv, request)

    async def sheet(self, request: Request) -> Response:
        return await self._in_turn(self._sheet, request)

    async def _in_turn(self, work: Callable[[Request], Response], request: Request) -> Response:
        self._check_count(request)
        with self.searching.slot():
            return await self.searching.run(work, request)

    def _check_count(self, request: Request) -> None:
        """Reject addresses with more parameters than the form has, since the page has a link for each of them."""
        columns = self.index.vocabulary.columns if self.index.vocabulary else ()
        most = len(columns) + 2 * len(self.groups.all) + OTHER_NAMES
        given = len(request.query_params.multi_items())
        if given > most:
            raise HTTPException(400, f"the address has {given} parameters, expected at most {most}; start again at /")

    def _search(self, request: Request) -> Response:
        given = request.query_params.multi_items()
        state, hits, error = SearchState(), [], ""
        try:
            state = SearchState.read(given)
            state = self._with_own_names(state)
            if any(not value.strip() for _, value in given):
                return RedirectResponse(state.address(), 303)  # removes empty fields of the form from the address
            hits = [] if state.says_nothing else self._found(state)[1]
        except ValueError as refused:
            error = str(refused)
        return self._page("page.html.j2", 400 if error else 200, state=state, hits=hits, error=error,
                          **self._context(state, hits, error))

    def _csv(self, request: Request) -> Response:
        *_, hits = self._state(request)
        text = contact_sheet.csv_text(contact_sheet.rows_of(hits, self.index.images))
        return Response(text, media_type="text/csv", headers=_attached("cerberus.csv"))

    def _sheet(self, request: Request) -> Response:
        state, query, hits = self._state(request)
        names = contact_sheet.display_names(self.index.vocabulary)
        conditions = contact_sheet.conditions_of(query, self._name(state), state.prefilter, self.index.clothing_groups,
                                                 names)
        notes = contact_sheet.notes_of(hits, self.index.prior)
        hits = contact_sheet.with_display_names(hits, names)
        text = contact_sheet.html_text(hits, conditions, self.index.images, self._jpeg(state), notes)
        return Response(text, media_type="text/html", headers=_attached("cerberus.html"))

    def _state(self, request: Request) -> tuple[SearchState, Query, list[Hit]]:
        try:
            state = self._with_own_names(SearchState.read(request.query_params.multi_items()))
            if state.says_nothing:
                raise ValueError("address: the query is empty; download from a page with results")
            return state, *self._found(state)
        except ValueError as refused:
            raise HTTPException(400, str(refused)) from refused

    def _with_own_names(self, state: SearchState) -> SearchState:
        """Replace display names of attributes with their names in the annotation file, as in the form and the links."""
        known = self.index.vocabulary
        return state.change(words=known.canonical(state.words)) if known and state.words else state

    def _found(self, state: SearchState) -> tuple[Query, list[Hit]]:
        try:
            query = state.query(self._embedding(state))
            return query, self.index.search(query, state.top, state.prefilter)
        except (LookupError, FileNotFoundError) as changed:
            raise ValueError("search: the gallery has changed during the search; search again") from changed

    def _embedding(self, state: SearchState):
        """Return the embedding of the query image; None without one."""
        if state.picture:
            return self._uploads().get(state.picture).embedding
        if state.like is None:
            return None
        try:
            return self.index.embedding(state.like)
        except LookupError as gone:
            raise ValueError(f"address: 'like={state.like}' is not an image of this gallery, or was deleted; choose "
                             "another image") from gone

    def _uploads(self) -> Uploads:
        if self.uploads is None:
            raise ValueError("image: uploaded images need the model; start `cerberus serve` with --run or --model, or "
                             "choose an image of the gallery")
        return self.uploads

    def _name(self, state: SearchState) -> str:
        return "uploaded image" if state.like is None else self._names([state.like]).get(state.like, "deleted image")

    def _address(self, state: SearchState) -> str:
        """Return the address of the query image; "" if there is none or it was deleted."""
        if state.picture:
            return f"/picture/{state.picture}" if self.uploads is not None and state.picture in self.uploads else ""
        return f"/crop/{state.like}" if state.like is not None and self._names([state.like]) else ""

    def _names(self, rows: Sequence[int]) -> dict[int, str]:
        """Return the file names of images by row, without deleted images."""
        names = {}
        for row in rows:
            with contextlib.suppress(LookupError):
                names[row] = self.index.path(row).name
        return names

    def _jpeg(self, state: SearchState) -> bytes | None:
        if state.picture:
            return self._uploads().get(state.picture).jpeg
        if state.like is None:
            return None
        try:
            return thumbnail(read_image(self.index.path(state.like)))
        except (Unreadable, LookupError):
            return None

    def _context(self, state: SearchState, hits: list[Hit], error: str) -> dict:
        """Return the variables of the page template."""
        vocabulary, groups, fitted = self.index.vocabulary, self.index.shape.groups, self.index.verification
        columns: dict[str, list] = {}
        for column in vocabulary.columns if vocabulary else ():
            columns.setdefault(column.group, []).append(column)
        group_of = {column.name: group for group, own in columns.items() for column in own}
        described = groups if state.has_picture else {group_of.get(name) for name in state.words}
        gone = state.left_out(self.groups)
        compared = [group for group in groups if group in described and group not in gone]
        return {"gallery": self.index.images.name, "count": len(self.index), "groups": self.groups, "columns": columns,
                "rates": sorted(fitted.thresholds, reverse=True) if fitted else [],
                "gone": gone, "wanted": self._address(state), "uploads": self.uploads is not None,
                "wanted_name": self._name(state), "compared": compared, "unknown": state.unknown(self.groups),
                "max_bytes": self.uploads.limits.max_bytes if self.uploads else 0,
                "login": self.login is not None, "tops": sorted({*TOPS, state.top}), "group_of": group_of,
                "said_groups": [group for group in groups
                                if group in described or group in state.out or group in state.weights],
                "paths": [contact_sheet.shown_path(hit, self.index.images) for hit in hits],
                "notes": contact_sheet.notes_of(hits, self.index.prior),
                "names": contact_sheet.display_names(vocabulary),
                "sample": self._names(self.index.sample(state.top)) if state.says_nothing and not error else {}}

    def _page(self, template: str, status: int = 200, headers: Mapping[str, str] | None = None, **context) -> Response:
        return HTMLResponse(self.templates.get_template(template).render(context), status, headers)

    # Images.

    def crop(self, request: Request) -> Response:
        try:
            image = read_image(self.index.path(request.path_params["row"]))
        except (LookupError, OverflowError):
            return PlainTextResponse("not an image of this gallery, or it was deleted", 404)
        except Unreadable as error:
            return PlainTextResponse(f"the image {error.reason}", 404)
        return Response(thumbnail(image), media_type="image/jpeg")

    def picture(self, request: Request) -> Response:
        try:
            return Response(self._uploads().get(request.path_params["token"]).jpeg, media_type="image/jpeg")
        except ValueError as error:
            return PlainTextResponse(str(error), 404)

    async def take(self, request: Request) -> Response:
        """Receive an uploaded image: the bytes of its file, without the file name."""
        if self.uploads is None:
            raise HTTPException(409, "uploaded images need the model; start `cerberus serve` with --run or --model")
        with self.sending.slot():
            data = await _body(request, self.uploads.limits.max_bytes)
            try:
                token = await self.sending.run(self.uploads.add, data)
            except Unreadable as error:
                raise HTTPException(422, f"the image {error.reason}") from error
        return JSONResponse({"picture": token})

    # Login.

    def login_form(self, request: Request) -> Response:
        return self._login_page(request)

    async def enter(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        form = parse_qs((await _body(request, FORM_BYTES)).decode("utf-8", "replace"))
        wait = math.ceil(self.login.wait(address))
        if wait:
            return self._login_page(request, f"Too many failed attempts; try again in {counted(wait, 'second')}.", 429,
                                    {"Retry-After": str(wait)})
        token = self.login.enter(address, *(form.get(name, [""])[0] for name in ("user", "password")),
                                 before=request.cookies.get(self.login.cookie))
        if token is None:
            return self._login_page(request, "Wrong user name or password.", 403)
        answer = RedirectResponse(with_query("/", request), 303)
        answer.set_cookie(self.login.cookie, token, max_age=LASTS, httponly=True, samesite="lax", secure=self.secure)
        return answer

    async def leave(self, request: Request) -> Response:
        self.login.leave(request.cookies.get(self.login.cookie))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self.login.cookie, httponly=True, samesite="lax", secure=self.secure)
        return answer

    def _login_page(self, request: Request, error: str = "", status: int = 200,
                    headers: Mapping[str, str] | None = None) -> Response:
        return self._page("login.html.j2", status, headers, error=error, action=with_query("/login", request))


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint for a static file, which is read once; requests cannot choose a path."""
    content = (Path(__file__).parent / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": f"max-age={KEPT}"})

    return answer


async def _body(request: Request, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        HTTPException: with status 413 as soon as it is too long, and 408 if it takes too long.
    """
    too_much = HTTPException(413, f"the upload has more than {most / 2**20:.2g} MiB; choose a smaller file")
    if request.headers.get("content-length", "").isdigit() and int(request.headers["content-length"]) > most:
        raise too_much
    data = bytearray()
    try:
        with anyio.fail_after(PATIENCE):
            async for piece in request.stream():
                data += piece
                if len(data) > most:
                    raise too_much
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took more than {PATIENCE} seconds; choose a smaller file",
                            {"Connection": "close"}) from error
    return bytes(data)


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _refused(request: Request, error: Exception) -> Response:
    known = {404: "page not found; start at /", 405: "method not allowed; start at /"}
    return PlainTextResponse(known.get(error.status_code, error.detail), error.status_code, error.headers)


def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # the client has disconnected


def _broken(request: Request, error: Exception) -> Response:
    return PlainTextResponse("internal error; see the terminal of `cerberus serve` for details", 500)
