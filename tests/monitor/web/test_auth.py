"""The guard: tokens, cookies, patience, foreign sites; each rule by itself, without a server."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillwatch.errors import UserError
from stillwatch.monitor.config import Web
from stillwatch.monitor.web.auth import SESSION, AuthMiddleware, LoginThrottle, Refusal, TokenAuth, loopback, token_of


def scope(method: str = "GET", path: str = "/api/v1/cameras") -> dict[str, Any]:
    return {"type": "http", "method": method, "path": path, "client": ("10.0.0.5", 1), "server": ("127.0.0.1", 8756)}


def refusal(guard: AuthMiddleware, headers: dict[str, str], **where: str) -> tuple[int, str] | None:
    try:
        guard.check(scope(**where), {"host": "localhost:8756", **headers})
    except Refusal as refusal:
        return refusal.status_code, refusal.detail
    return None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_names_of_this_machine(host: str) -> None:
    assert loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "192.168.1.4", "evil.example", "localhost.evil.example", "127.1"]
)
def test_names_that_others_may_own(host: str) -> None:
    assert not loopback(host)


def test_another_address_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert token_of(Web()) is None
    with pytest.raises(UserError, match=r'web.host = "0.0.0.0": anybody on the network could look'):
        token_of(Web(host="0.0.0.0"))
    with pytest.raises(UserError, match=r"\$DOOR: not set in the environment"):
        token_of(Web(host="0.0.0.0", token="$DOOR"))
    monkeypatch.setenv("DOOR", "short")
    with pytest.raises(UserError, match=r"\$DOOR: has fewer than 8 characters") as caught:
        token_of(Web(host="0.0.0.0", token="$DOOR"))
    assert "short" not in str(caught.value)
    monkeypatch.setenv("DOOR", "long enough")
    assert token_of(Web(host="0.0.0.0", token="$DOOR")) == "long enough"


def test_a_cookie_lasts_for_its_time_and_for_its_token() -> None:
    keys = TokenAuth("long enough")
    cookie = keys.cookie(1000.0)
    assert keys.admits(cookie, 1000.0 + SESSION - 1)
    assert not keys.admits(cookie, 1000.0 + SESSION + 1)
    assert TokenAuth("long enough").admits(cookie, 1001.0)  # after a restart
    assert not TokenAuth("another one").admits(cookie, 1001.0)  # after a change of token
    assert "long enough" not in cookie


@given(st.text(max_size=80))
def test_no_made_up_cookie_is_admitted(cookie: str) -> None:
    assert not KEYS.admits(cookie, 1000.0)


@given(st.text(max_size=40))
def test_only_the_token_is_right(token: str) -> None:
    assert KEYS.right(token) == (token == "long enough")


KEYS = TokenAuth("long enough")


def test_each_wrong_token_makes_the_next_wait_longer() -> None:
    patience = LoginThrottle((1.0, 10.0))
    waits = []
    now = 0.0
    for _ in range(6):
        patience.wrong("10.0.0.5", now)
        waits.append(patience.left("10.0.0.5", now))
        now += waits[-1]
    assert waits == [1, 2, 4, 8, 10, 10]
    assert patience.left("10.0.0.5", now) == 0
    assert patience.left("10.0.0.6", 0.0) == 0  # a neighbour need not wait
    patience.wrong("10.0.0.5", now + 10_000)
    assert patience.left("10.0.0.5", now + 10_000) == 1  # forgiven


def test_an_ipv6_guesser_has_one_network_and_the_memory_is_bounded() -> None:
    patience = LoginThrottle((1.0, 10.0), most=3)
    patience.wrong("2001:db8:1:2::1", 0.0)
    assert patience.left("2001:db8:1:2:ffff::9", 0.0) == 1
    for number in range(5):
        patience.wrong(f"10.0.0.{number}", 0.0)
    assert patience.left("2001:db8:1:2::1", 0.0) == 0
    assert len(patience._wrong) == 3


def test_the_right_token_passes_while_its_address_guesses() -> None:
    guard = AuthMiddleware(None, KEYS, LoginThrottle((60.0, 60.0)))
    bearer = {"authorization": "Bearer long enough"}
    assert refusal(guard, bearer) is None
    assert refusal(guard, {"authorization": "Bearer wrong"}) == (401, "wrong token")
    for _ in range(3):
        assert refusal(guard, {"authorization": "Bearer wronger"}) == (429, "too many wrong tokens; try again in 60 s")
        assert refusal(guard, bearer) is None
    cookie = f"stillwatch-8756={KEYS.cookie(4e9)}"
    assert refusal(guard, {"cookie": cookie}) is None  # who has logged in is not locked out by somebody's guesses


def test_without_a_token_only_this_machine_is_answered() -> None:
    guard = AuthMiddleware(None, None, LoginThrottle())
    assert refusal(guard, {}) is None
    for host in ("127.0.0.1:8756", "[::1]:8756", "localhost"):
        assert refusal(guard, {"host": host}) is None
    for host in ("evil.example:8756", "", "192.168.1.4", "[::1", "localhost@evil.example"):
        found = refusal(guard, {"host": host})
        assert found is not None, host
        assert found[0] == 421


def test_with_a_token_any_name_is_answered_and_nothing_without_it() -> None:
    guard = AuthMiddleware(None, KEYS, LoginThrottle())
    assert refusal(guard, {"host": "cams.example", "authorization": "bearer long enough"}) is None
    for headers in (
        {},
        {"authorization": "Basic bG9uZyBlbm91Z2g="},
        {"cookie": "stillwatch-8756=9.abc"},
        {"cookie": ";;=,"},
    ):
        found = refusal(guard, headers)
        assert found is not None
        assert found[0] == 401
    for path in ("/", "/page.js", "/healthz", "/readyz"):
        assert refusal(guard, {}, path=path) is None
    for path in ("/metrics", "/api/v1/openapi.json", "/api/v1/login/", "//"):
        assert refusal(guard, {}, path=path) is not None


def test_another_site_neither_posts_nor_embeds_but_may_link() -> None:
    guard = AuthMiddleware(None, None, LoginThrottle())
    json = {"content-type": "application/json", "content-length": "2"}
    assert refusal(guard, {**json, "sec-fetch-site": "same-origin"}, method="POST") is None
    assert refusal(guard, {**json, "origin": "http://localhost:8756"}, method="POST") is None
    assert refusal(guard, json, method="POST") is None  # curl
    for foreign in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "http://evil.example"},
                    {"origin": "null"}, {"origin": "http://localhost:9999"}):  # fmt: skip
        found = refusal(guard, {**json, **foreign}, method="POST")
        assert found is not None, foreign
        assert found[0] == 403
    assert refusal(guard, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}) is not None
    assert refusal(guard, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) is None
    assert (
        refusal(guard, {**json, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, method="POST")
        is not None
    )


def test_a_post_is_json_and_small() -> None:
    guard = AuthMiddleware(None, None, LoginThrottle())
    for headers, status in (
        ({"content-type": "application/x-www-form-urlencoded", "content-length": "2"}, 415),
        ({"content-type": "text/plain", "content-length": "2"}, 415),
        ({"content-length": "2"}, 415),
        ({"content-type": "application/json"}, 411),
        ({"content-type": "application/json", "content-length": "-1"}, 411),
        ({"content-type": "application/json", "content-length": "65537"}, 413),
    ):
        found = refusal(guard, headers, method="POST")
        assert found is not None
        assert found[0] == status
    assert (
        refusal(guard, {"content-type": "application/json; charset=utf-8", "content-length": "65536"}, method="POST")
        is None
    )
