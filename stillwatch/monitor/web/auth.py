"""Guard: who may come in: the token, wrong tokens slowed, foreign sites kept out, and headers that bind the browser.

In: every request, before the web sees it. Out: the request, or one line of JSON that says why not.
Called by the web. It knows no camera and no event.
"""

import hashlib
import hmac
import ipaddress
import json
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from stillwatch.errors import UserError
from stillwatch.monitor import config as plans

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = {"/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/readyz", "/api/v1/login"}  # they tell nothing
LARGEST = 64 * 1024  # bytes of a POST
SHORTEST = 8  # characters of a token
SESSION = 30 * 86400.0  # seconds that a login lasts
WAIT = (1.0, 10.0)  # seconds after the first wrong token of an address, doubled by each, and the longest
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Refusal(Exception):
    """(status, one line for a person, more headers)"""

    def __init__(self, status: int, words: str, headers: Mapping[str, str] | None = None):
        super().__init__(words)
        self.status, self.words, self.headers = status, words, dict(headers or {})


def loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def token_of(web: plans.Web) -> str | None:
    """The page's token out of the environment. Raises UserError where it is missing or too short."""
    if web.token is None:
        if not loopback(web.host):
            raise UserError(
                f'web.host = "{web.host}": anybody on the network could look; '
                'add token = "$STILLWATCH_TOKEN" under [web], or leave host at 127.0.0.1'
            )
        return None
    token = str(plans.secret(web.token))
    if len(token) < SHORTEST:
        raise UserError(
            f"web.token = {web.token}: has fewer than {SHORTEST} characters; `openssl rand -hex 16` makes one"
        )
    return token


class TokenAuth:
    """The token, and the cookies that stand for it: when it ends, and a MAC. They outlive a restart, not the token."""

    def __init__(self, token: str):
        self._token = token.encode()
        self._key = hashlib.pbkdf2_hmac("sha256", self._token, b"stillwatch session", 100_000)

    def right(self, token: str) -> bool:
        """Compared in constant time."""
        return hmac.compare_digest(token.encode(), self._token)

    def cookie(self, now: float) -> str:
        end = str(int(now + SESSION))
        return f"{end}.{self._mac(end)}"

    def admits(self, cookie: str, now: float) -> bool:
        end, _, mac = cookie.partition(".")
        right = hmac.compare_digest(mac.encode(), self._mac(end).encode())
        return right and end.isdecimal() and now < int(end)

    def _mac(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), "sha256").hexdigest()


class LoginThrottle:
    """Wrong tokens, by address: each makes the next guess from there wait longer, whether it is right or not."""

    def __init__(self, wait: tuple[float, float] = WAIT, most: int = 1024):
        self.wait, self._most = wait, most
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def left(self, address: str, now: float) -> float:
        """Seconds until this address may try again; 0: now."""
        return max(0.0, self._wrong.get(_network(address), (0, 0.0))[1] - now)

    def wrong(self, address: str, now: float) -> None:
        place = _network(address)
        count, until = self._wrong.pop(place, (0, 0.0))
        if now - until > 60 * self.wait[1]:  # long ago
            count = 0
        self._wrong[place] = (count + 1, now + min(self.wait[1], self.wait[0] * 2.0 ** min(count, 30)))
        while len(self._wrong) > self._most:
            self._wrong.popitem(last=False)


class AuthMiddleware:
    """An ASGI app around another. keys: None where no token is asked for: then only localhost is answered."""

    def __init__(self, app: Any, keys: TokenAuth | None, patience: LoginThrottle):
        self.app, self.keys, self.patience = app, keys, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}

        async def out(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {key.lower() for key, _ in message["headers"]}
                more = {**HEADERS, "cache-control": "no-store"}
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in more.items() if k.encode() not in there),
                ]
            await send(message)

        try:
            self.check(scope, headers)
        except Refusal as refusal:
            await refuse(refusal, out)
            return
        await self.app(scope, receive, out)

    def check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises Refusal. Nothing in it waits, so that a flood of guesses costs a lookup each."""
        if self.keys is None and not loopback(_hostname(headers.get("host", ""))):
            raise Refusal(421, "this page answers to localhost only; give [web] a token to reach it by another name")
        _same_site(scope, headers)
        if scope["method"] not in ("GET", "HEAD"):
            _small_json(headers)
        if self.keys is not None and scope["path"] not in OPEN:
            self._admit(self.keys, scope, headers)

    def _admit(self, keys: TokenAuth, scope: Scope, headers: Mapping[str, str]) -> None:
        if admitted(keys, scope, headers):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refusal(401, "a token is needed: Authorization: Bearer …, or log in", {"www-authenticate": "Bearer"})
        try_token(keys, self.patience, token.strip(), address(scope))


def try_token(keys: TokenAuth, patience: LoginThrottle, token: str, address: str) -> None:
    """Raises Refusal for a wrong token, and for any while this address has to wait."""
    now = time.monotonic()
    left = patience.left(address, now)
    if left > 0:
        wait = math.ceil(left)
        raise Refusal(429, f"too many wrong tokens; try again in {wait} s", {"retry-after": str(wait)})
    if not keys.right(token):
        patience.wrong(address, now)
        raise Refusal(401, "wrong token", {"www-authenticate": "Bearer"})


def admitted(keys: TokenAuth, scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether this request carries the cookie of a login."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(cookie_name(scope))
    except CookieError:
        return False
    return morsel is not None and keys.admits(morsel.value, time.time())


def cookie_name(scope: Scope) -> str:
    """Cookies know no ports: two watches on one machine must not log each other out."""
    return f"stillwatch-{(scope.get('server') or ('', 0))[1]}"


def address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


async def refuse(refusal: Refusal, send: Send) -> None:
    body = json.dumps({"error": refusal.words}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _same_site(scope: Scope, headers: Mapping[str, str]) -> None:
    """Another site's page may link here; it may not read, embed or post. Browsers without Sec-Fetch-*: Origin."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        looks = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        foreign = site not in ("same-origin", "none") and not looks
    else:
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if foreign:
        raise Refusal(403, "this request comes from another site")


def _small_json(headers: Mapping[str, str]) -> None:
    """A form of another site cannot send JSON; and nothing that is sent here is large."""
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Content-Type must be application/json")
    length = headers.get("content-length", "")
    if not length.isdecimal():
        raise Refusal(411, "Content-Length is missing")
    if int(length) > LARGEST:
        raise Refusal(413, f"the body is larger than {LARGEST} bytes")


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; "" where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _network(address: str) -> str:
    """An IPv6 guesser has a whole /64 to guess from."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address
