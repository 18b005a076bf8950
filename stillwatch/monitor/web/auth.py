"""Access: token, sessions, login throttle, same-site checks, security headers."""

import hashlib
import hmac
import ipaddress
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillwatch.atomic import atomic
from stillwatch.errors import UserError
from stillwatch.monitor.config import Web, secret

OPEN = {"/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/readyz", "/api/v1/login"}  # they tell nothing
LARGEST = 64 * 1024  # bytes of a POST
SHORTEST = 8  # characters of a token
SESSION = 30 * 86400.0  # seconds that a login lasts
WAIT = (1.0, 10.0)  # seconds after a wrong token of an address, doubled by each, and the longest
FREE = 3  # wrong tokens of an address before the next wrong one must wait
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Refusal(HTTPException):
    """Status, one line for a person, headers."""


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def token_of(web: Web) -> str | None:
    """Raises UserError."""
    if web.token is None:
        if not loopback(web.host):
            raise UserError(
                f'web.host = "{web.host}": anybody on the network could look; '
                'add token = "$STILLWATCH_TOKEN" under [web], or leave host at 127.0.0.1'
            )
        return None
    token = str(secret(web.token))
    if len(token) < SHORTEST:
        raise UserError(
            f"web.token = {web.token}: has fewer than {SHORTEST} characters; `openssl rand -hex 16` makes one"
        )
    return token


class TokenAuth:
    """The token and its session cookies END-NONCE.MAC; `logouts` were logged out."""

    def __init__(self, token: str, logouts: Path | None = None):
        self._token, self._logouts = token.encode(), logouts
        self._key = hashlib.pbkdf2_hmac("sha256", self._token, b"stillwatch session", 100_000)
        self._ended: set[str] = set()
        if logouts:
            with suppress(OSError, UnicodeDecodeError):
                self._ended.update(logouts.read_text().split())

    def right(self, token: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(token.encode(), self._token)

    def cookie(self, now: float) -> str:
        session = f"{int(now + SESSION)}-{secrets.token_hex(8)}"
        return f"{session}.{self._mac(session)}"

    def admits(self, cookie: str, now: float) -> bool:
        session, _, mac = cookie.partition(".")
        end = session.partition("-")[0]
        right = hmac.compare_digest(mac.encode(), self._mac(session).encode())
        return right and end.isdecimal() and now < int(end) and session not in self._ended

    def log_out(self, cookie: str, now: float) -> None:
        if self.admits(cookie, now):
            self._ended = {session for session in self._ended if now < int(session.partition("-")[0])}
            self._ended.add(cookie.partition(".")[0])
            if self._logouts:
                with suppress(OSError), atomic(self._logouts) as draft:
                    draft.write_text("\n".join(self._ended))

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()


class LoginThrottle:
    """After `free` wrong tokens an address waits longer and longer."""

    def __init__(self, wait: tuple[float, float] = WAIT, most: int = 1024, free: int = 0):
        self.wait, self._most, self._free = wait, most, free
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def left(self, address: str, now: float) -> float:
        """Seconds until it may try again."""
        return max(0.0, self._wrong.get(_network(address), (0, 0.0))[1] - now)

    def wrong(self, address: str, now: float) -> None:
        place = _network(address)
        count, until = self._wrong.pop(place, (0, 0.0))
        if now - until > 60 * self.wait[1]:  # long ago
            count = 0
        wait = 0.0 if count < self._free else min(self.wait[1], self.wait[0] * 2.0 ** min(count - self._free, 30))
        self._wrong[place] = (count + 1, now + wait)
        while len(self._wrong) > self._most:
            self._wrong.popitem(last=False)


class AuthMiddleware:
    """keys: None: no token is needed, and only localhost answered."""

    def __init__(self, app: ASGIApp, keys: TokenAuth | None, patience: LoginThrottle):
        self.app, self.keys, self.patience = app, keys, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_bound(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self.check(scope, Headers(scope=scope))
        except Refusal as refusal:
            answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
            await answer(scope, receive, send_bound)
            return
        await self.app(scope, receive, send_bound)

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        try:
            hostname = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            hostname = ""
        if self.keys is None and not loopback(hostname):
            raise Refusal(421, "this page answers to localhost only; give [web] a token to reach it by another name")
        _same_site(scope, headers)
        if scope["method"] not in ("GET", "HEAD"):
            # another site's form cannot send JSON
            if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
                raise Refusal(415, "Content-Type must be application/json")
            length = headers.get("content-length", "")
            if not length.isdecimal():
                raise Refusal(411, "Content-Length is missing")
            if int(length) > LARGEST:
                raise Refusal(413, f"the body is larger than {LARGEST} bytes")
        if self.keys is None or scope["path"] in OPEN:
            return
        if self.keys.admits(session_cookie(scope, headers), time.time()):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal(401, "a token is needed: Authorization: Bearer …, or log in", {"www-authenticate": "Bearer"})
        try_token(self.keys, self.patience, token.strip(), address(scope))


def try_token(keys: TokenAuth, patience: LoginThrottle, token: str, address: str) -> None:
    """Raises Refusal for a wrong token. The right one never waits: a guesser locks nobody out."""
    if keys.right(token):
        return
    now = time.monotonic()
    if (left := patience.left(address, now)) > 0:
        wait = math.ceil(left)
        raise Refusal(429, f"too many wrong tokens; try again in {wait} s", {"retry-after": str(wait)})
    patience.wrong(address, now)
    raise Refusal(401, "wrong token", {"www-authenticate": "Bearer"})


def cookie_name(scope: Scope) -> str:
    """With the port: two watches share a host."""
    return f"stillwatch-{(scope.get('server') or ('', 0))[1]}"


def session_cookie(scope: Scope, headers: Mapping[str, str]) -> str:
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(scope), "")


def address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _same_site(scope: Scope, headers: Mapping[str, str]) -> None:
    """Another site may link here, not read, embed or post."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        looks = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        foreign = site not in ("same-origin", "none") and not looks
    else:
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign:
        raise Refusal(403, "this request comes from another site")


def _network(address: str) -> str:
    try:  # an IPv6 guesser has a whole /64
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address
