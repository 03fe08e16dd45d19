"""Who may ask: tokens, cookies, and the headers by which other pages are kept out.

A page of another site can make a browser send requests here. It cannot change the Origin header, which must then be
this server's own; and a name of its own that leads to this address shows in the Host header.
"""

from __future__ import annotations

import hmac
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from musicldm.app.options import LOCAL_CLIENT, LOOPBACK, Options

COOKIE = "musicldm"
OPEN = ("/", "/health", "/v1/session", "/favicon.ico")  # paths that need no token
OPEN_FOLDERS = ("/static/",)
SAFE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
     b"style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
]  # fmt: skip


def client_of(token: str | None, options: Options) -> str | None:
    """The client that ``token`` stands for, None if it is none of this server's; each is compared in constant time."""
    if not options.tokens:
        return LOCAL_CLIENT
    found = None
    for known, client in options.clients.items():
        if hmac.compare_digest(known.encode(), (token or "").encode()):
            found = client
    return found


def token_of(headers: Headers) -> str | None:
    """The token of a request, of its Authorization header or its cookie."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return None if cookie is None else cookie.value


def host_problem(headers: Headers, options: Options) -> str | None:
    """Why a request with these Host and Origin headers is refused; None if it is not."""
    host = headers.get("host", "")
    name = urlsplit(f"//{host}").hostname if "@" not in host else None
    if name is None or not _is_ours(name, options):
        return f"this server is not {host!r}; ask it by its address, or name it with --name"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return f"pages of {origin!r} may not use this server"
    return None


def _is_ours(name: str, options: Options) -> bool:
    if name.lower() in (*LOOPBACK, options.host.lower(), *(one.lower() for one in options.names)):
        return True
    if options.host in LOOPBACK:
        return False
    try:  # an address cannot be another site's name
        return bool(ip_address(name))
    except ValueError:
        return False


class Gate:
    """ASGI middleware that refuses requests from outside, and tells the others which client they are of."""

    def __init__(self, app: ASGIApp, options: Options):
        self.app, self.options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *SAFE_HEADERS]
            await send(message)

        headers, path = Headers(scope=scope), scope["path"]
        try:
            problem = host_problem(headers, self.options)
        except ValueError:  # a header that is no address
            problem = "the Host or Origin header is no address"
        if problem is not None:
            await JSONResponse({"detail": problem}, 403)(scope, receive, send_safely)
            return
        client = client_of(token_of(headers), self.options)
        if client is None and path not in OPEN and not path.startswith(OPEN_FOLDERS):
            refusal = JSONResponse({"detail": "this needs a token: Authorization: Bearer TOKEN"}, 401)
            refusal.headers["WWW-Authenticate"] = "Bearer"
            await refusal(scope, receive, send_safely)
            return
        scope.setdefault("state", {})["client"] = client
        await self.app(scope, receive, send_safely)
