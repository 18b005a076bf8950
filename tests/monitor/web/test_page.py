"""The page in a real Chromium: what an operator sees, clicks and hears of, wide and at 360 pixels."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from event_toys import until
from web_toys import Street, happened, keep_files, opened, remember

from stillwatch.media import synthetic
from stillwatch.monitor.events import database

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install stillwatch[dev]")
CHROMIUM = Path("/usr/bin/chromium")
ARGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--autoplay-policy=no-user-gesture-required",
)  # fmt: skip
COUNT_TONES = """() => {
  window.tones = 0;
  const make = AudioContext.prototype.createOscillator;
  AudioContext.prototype.createOscillator = function () { window.tones++; return make.call(this); };
}"""
HTML = "<img src=x onerror=document.title='hacked'><b>bold</b>"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no /usr/bin/chromium: make programs")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGS))
        yield browser
        browser.close()


class Page:
    """A page of a fresh browser profile; what went wrong in it is kept."""

    def __init__(self, chromium: Any, street: Street, width: int = 1280, height: int = 800, **how: Any):
        self.context = chromium.new_context(viewport={"width": width, "height": height}, **how)
        self.context.set_default_timeout(15_000)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.foreign: list[str] = []
        at = f"http://127.0.0.1:{street.port}/"
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "console", lambda it: self.faults.append(it.text) if "Content Security Policy" in it.text else None
        )
        self.page.on("request", lambda it: None if it.url.startswith((at, "blob:")) else self.foreign.append(it.url))
        self.page.goto(at)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            assert self.faults == []
            assert self.foreign == []  # it works where there is no internet


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    with opened(tmp_path) as it:
        live(it, "cab")
        live(it, "yard")
        it.board.ready = True
        yield it


def live(it: Street, camera: str, **more: Any) -> None:
    fields: dict[str, Any] = {
        "state": "live", "status": "ok", "words": "", "p": [0.2, 0.8], "gauge": 0.25, "gauge_name": "evidence",
        "fps": 10.0, "age_ms": 30.0, "seen": time.time(), "open": [],
    }  # fmt: skip
    it.board.update(camera, **(fields | more))


def shade(it: Street, camera: str, gray: int) -> None:
    """An evenly gray picture."""
    it.board.show(camera, cv2.imencode(".jpg", np.full((90, 160, 3), gray, np.uint8))[1].tobytes())


def card(page: Any, camera: str) -> Any:
    return page.get_by_role("article", name=camera, exact=True)


def gray(page: Any, camera: str) -> int:
    """The canvas's middle."""
    return card(page, camera).locator("canvas").evaluate(
        "it => it.width > 300 ? -1 : it.getContext('2d').getImageData(it.width / 2, it.height / 2, 1, 1).data[0]"
    )  # fmt: skip


def test_zones_are_drawn_and_a_disarmed_camera_says_so(chromium: Any, street: Street) -> None:
    corner = [(0.0, 0.0), (0.5, 0.0), (0.5, 0.5), (0.0, 0.5)]
    live(street, "cab", armed=False, ignore=[corner], crop=(0.0, 0.0, 1.0, 0.75), p=None)
    with Page(chromium, street) as page:
        until(lambda: street.board.asked("cab", "picture") == 1)
        shade(street, "cab", 240)
        card(page, "cab").get_by_text("Disarmed", exact=True).wait_for()
        canvas = card(page, "cab").locator("canvas")
        shown = canvas.evaluate(
            "it => [[20, 10], [120, 40], [120, 80]].map((at) => it.getContext('2d').getImageData(...at, 1, 1).data[0])"
        )
        assert shown[1] == 240 and shown[0] == shown[2] < 160


def test_a_face_has_gauges_with_the_drivers_usual_and_its_points_on_request(chromium: Any, street: Street) -> None:
    face = {
        "eyes": 0.12, "mouth": 0.05, "yaw": -30.0, "pitch": 0.0, "shut": 0.9, "learnt": 0.4,
        "usual": {"eyes": 0.27, "mouth": 0.05, "yaw": 0.0, "pitch": -9.0},
    }  # fmt: skip
    live(street, "cab", face=face)
    with Page(chromium, street) as page:
        cab = card(page, "cab")
        cab.get_by_text("Learning this driver: 40").wait_for()
        eyes, head = (cab.get_by_role("meter", name=name, exact=True) for name in ("Eyes", "Head"))
        assert (eyes.get_attribute("aria-valuetext"), head.get_attribute("aria-valuetext")) == (
            "0.12, usually 0.27", "-30°, usually 0°",
        )  # fmt: skip
        assert head.locator(".fill").get_attribute("style") == "width: 25%;"
        assert head.locator(".mark").get_attribute("style") == "left: 50%;"
        assert card(page, "yard").get_by_text("Eyes", exact=True).count() == 0, "where no face is read"
        cab.get_by_role("button", name="Points").click()
        until(lambda: street.board.asked("cab", "points") and not street.board.asked("yard", "points"))
        cab.get_by_role("button", name="Points").click()
        until(lambda: not street.board.asked("cab", "points") and street.board.asked("cab", "picture") == 1)
        live(street, "cab", face=face | {"eyes": None, "mouth": None, "yaw": None, "shut": None})
        cab.get_by_text("No face").wait_for()


def test_where_the_evidence_is_is_shown_on_request(chromium: Any, street: Street) -> None:
    live(street, "cab", where=True)
    with Page(chromium, street) as page:
        cab = card(page, "cab")
        cab.get_by_role("button", name="Where").click()
        until(lambda: street.board.asked("cab", "where") == 1 and not street.board.asked("cab", "points"))
        assert not card(page, "yard").get_by_role("button", name="Where").is_visible()
        cab.get_by_role("button", name="Where").click()
        until(lambda: not street.board.asked("cab", "where") and street.board.asked("cab", "picture") == 1)


def test_live_pictures_bars_and_gauge(chromium: Any, street: Street) -> None:
    with Page(chromium, street) as page:
        until(lambda: street.board.asked("cab", "picture") == street.board.asked("yard", "picture") == 1)
        for value in (40, 200):
            shade(street, "cab", value)
            until(lambda value=value: abs(gray(page, "cab") - value) < 4)
        cab = card(page, "cab")
        cab.get_by_text("Live", exact=True).wait_for()
        cab.get_by_text("10 fps · 30 ms").wait_for()
        meters = {
            one.get_attribute("aria-label"): one.get_attribute("aria-valuenow")
            for one in cab.get_by_role("meter").all()
        }
        assert meters == {"Evidence": "0.25", "Safe": "0.20", "Bad": "0.80"}
        fill = cab.get_by_role("meter", name="Bad").locator(".fill")
        until(lambda: abs(fill.bounding_box()["width"] / fill.locator("..").bounding_box()["width"] - 0.8) < 0.02)
        card(page, "yard").get_by_text("Waiting for a picture").first.wait_for()  # none has come: nothing is "live"
    until(lambda: street.board.asked("cab", "picture") == 0)


class StripProxy(BaseHTTPRequestHandler):
    """A reverse proxy that shows the page under /cams/ and knows nothing else."""

    upstream = 0

    def do_GET(self) -> None:
        path = self.path.removeprefix("/cams")
        if path == self.path:
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = HTTPConnection("127.0.0.1", self.upstream)
        connection.request(self.command, path, body, dict(self.headers))
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError), contextlib.closing(connection):
            while part := answer.read1(65536):
                self.wfile.write(part)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return None


def test_it_works_behind_a_proxy_that_strips_a_prefix(
    chromium: Any, street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StripProxy, "upstream", street.port)
    remember(street, happened())
    keep_files(street, "cab-s-1")
    with ThreadingHTTPServer(("127.0.0.1", 0), StripProxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{proxy.server_port}/cams/"
        page = chromium.new_page()
        answers: dict[str, int] = {}
        page.on("response", lambda answer: answers.update({answer.url: answer.status}))
        page.goto(at)
        until(lambda: street.board.asked("cab", "picture") == 1)
        shade(street, "cab", 200)
        until(lambda: abs(gray(page, "cab") - 200) < 4)
        page.get_by_text("a phone in the hand").first.wait_for()
        page.wait_for_timeout(500)
        assert answers[f"{at}api/v1/events/cab-s-1/thumbnail"] == 200
        assert {url: status for url, status in answers.items() if status >= 400 or not url.startswith(at)} == {}
        page.close()
        proxy.shutdown()


def test_what_is_not_live_is_gray_and_says_since_when(chromium: Any, street: Street) -> None:
    with Page(chromium, street, timezone_id="UTC") as page:
        until(lambda: street.board.asked("cab", "picture") == 1)
        shade(street, "cab", 200)
        cab = card(page, "cab")
        cab.get_by_text("Live", exact=True).wait_for()
        assert cab.get_attribute("data-fresh") == "yes"
        seen = time.time()
        street.board.update("cab", state="lost", words="connection refused", seen=seen)
        over = cab.locator(".notice-over")
        over.get_by_text("No signal").wait_for()
        said = over.inner_text()
        assert time.strftime("since %H:%M:%S", time.gmtime(seen)) in said
        assert "connection refused" in said
        assert "Last picture" in said
        assert "grayscale(1)" in cab.locator("canvas").evaluate("it => getComputedStyle(it).filter")
        assert cab.get_by_role("meter", name="Bad").get_attribute("aria-valuetext") == "unknown"
        for status, words in (("frozen", "Picture frozen"), ("black", "Dark, or the lens is covered")):
            live(street, "cab", status=status)
            over.get_by_text(words).wait_for()
            shade(street, "cab", 120)  # pictures go on, but they are no news
            assert cab.get_attribute("data-fresh") == "no"
        street.board.update("cab", state="failed", words="no such file")
        over.get_by_text("Cannot be opened").wait_for()
        live(street, "cab")
        shade(street, "cab", 90)
        cab.get_by_text("Live", exact=True).wait_for()
        assert over.is_hidden()
        live(street, "cab", status="damaged")  # those that are whole are shown
        cab.locator(".pill").get_by_text("Some pictures arrive damaged").wait_for()
        assert over.is_hidden() and cab.get_attribute("data-fresh") == "yes"


def test_a_picture_that_stops_is_not_shown_as_live(chromium: Any, street: Street) -> None:
    with Page(chromium, street) as page:
        until(lambda: street.board.asked("cab", "picture") == 1)
        shade(street, "cab", 200)
        card(page, "cab").get_by_text("Live", exact=True).wait_for()
        card(page, "cab").locator(".notice-over").get_by_text("No new picture").wait_for()
        assert card(page, "cab").get_attribute("data-fresh") == "no"


def test_a_server_that_is_gone_is_unmistakable_and_comes_back(chromium: Any, street: Street) -> None:
    from stillwatch.monitor.web.server import Server

    with Page(chromium, street) as page:
        until(lambda: street.board.asked("cab", "picture") == 1)
        shade(street, "cab", 200)
        card(page, "cab").get_by_text("Live", exact=True).wait_for()
        street.server.close(1)
        page.locator("#link").get_by_text("No connection since").wait_for()
        assert card(page, "cab").locator(".notice-over").get_by_text("No connection").is_visible()
        assert card(page, "cab").get_attribute("data-fresh") == "no"
        street.server._app.state.hub.closing.clear()
        again = Server(street.server._app, "127.0.0.1", street.port)
        again.start()
        try:
            page.locator("#link").get_by_text("Connected").wait_for()
            until(lambda: street.board.asked("cab", "picture") == 1)
            shade(street, "cab", 60)
            card(page, "cab").get_by_text("Live", exact=True).wait_for()
        finally:
            page.close()
            again.close(2)


def film(it: Street, id: str) -> None:
    """A clip that Chromium can play, and a thumbnail."""
    path = it.folder / "clips" / f"{id}.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for _, picture, _ in synthetic.clip("cabin", 2, 10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    jpeg = cv2.imencode(".jpg", synthetic.still("cabin", "Yawn", 0, 0))[1].tobytes()
    it.store.attach(id, clip=path, thumbnail=jpeg)
    until(lambda: (row := database.event(it.folder, id)) and row.clip and row.thumbnail)


def say(it: Street, event: Any) -> None:
    """As the loop does."""
    it.store.put(event)
    it.board.publish("event", id=event.id, event=event.as_dict())


def test_an_event_arrives_with_picture_and_clip_and_is_marked_and_unmarked(chromium: Any, street: Street) -> None:
    with Page(chromium, street) as page:
        page.get_by_text("Nothing has happened yet.").wait_for()
        event = happened(at=time.time() - 3, state="opened", level="alarm", end=None)
        live(street, "cab", open=[event.as_dict()])
        say(street, event)
        row = page.locator(".event")
        row.get_by_text("a phone in the hand").wait_for()
        card(page, "cab").get_by_text("Alarm: a phone in the hand").wait_for()
        assert card(page, "cab").get_attribute("data-level") == "alarm"
        assert row.get_by_text("now,").is_visible()
        assert "alarm: a phone in the hand" in page.locator("#aloud").inner_text()
        until(lambda: page.title() == "(1) Stillwatch")

        live(street, "cab", open=[])
        say(street, happened(at=event.start, level="alarm"))
        film(street, event.id)
        street.board.publish("event", id=event.id)
        row.get_by_role("button", name="Play: a phone in the hand").click()
        clip = page.locator("dialog video")
        until(lambda: clip.evaluate("it => it.currentTime > 0"))
        assert page.get_by_role("dialog").get_by_text("lasted 5\u00a0s").is_visible()
        page.keyboard.press("Escape")
        clip.wait_for(state="detached")  # a closed door is silent

        row.get_by_role("button", name="Mark as a false alarm").click()
        row.get_by_text("False alarm · ").wait_for()
        until(lambda: (street.json(f"/api/v1/events/{event.id}"))["verdict"] == "false")
        filed = list((street.folder / "negatives" / "Safe" / "cab").glob("*.jpg"))
        assert len(filed) >= 2
        assert row.get_by_text(f"{len(filed)} pictures filed for training").is_visible()
        until(lambda: page.title() == "Stillwatch")
        row.get_by_role("button", name="Undo").click()
        row.get_by_role("button", name="Acknowledge").wait_for()
        until(lambda: street.json(f"/api/v1/events/{event.id}")["verdict"] is None)
        assert not list((street.folder / "negatives").rglob("*.jpg"))
        row.get_by_role("button", name="Acknowledge").click()
        row.get_by_text("Acknowledged").wait_for()
        until(lambda: street.json(f"/api/v1/events/{event.id}")["acknowledged"])


def test_events_are_filtered_and_older_ones_fetched(chromium: Any, street: Street) -> None:
    now = time.time()
    remember(street, *[happened(f"cab-s-{n}", now - 3600 + n, level="notice") for n in range(45)])
    remember(street, happened("yard-s-1", now - 10, camera="yard", level="alarm", words="a fight"))
    with Page(chromium, street) as page:
        rows = page.locator(".event:visible")
        until(lambda: rows.count() == 40)
        assert "a fight" in rows.first.inner_text()
        page.get_by_role("button", name="Older events").click()
        until(lambda: rows.count() == 46)
        page.get_by_label("Level").select_option("alarm")
        until(lambda: rows.count() == 1)
        page.locator("#by-camera").select_option("cab")
        page.get_by_text("No such events.").wait_for()
        page.get_by_label("Level").select_option("")
        until(lambda: rows.count() == 40)
        assert page.get_by_text("a fight").count() == 0


def test_html_in_names_words_and_labels_is_text(chromium: Any, tmp_path: Path) -> None:
    with opened(tmp_path, cameras=("cab", HTML)) as street:  # a name that is wrong in watch.toml is shown too
        board = street.board
        board.labels = (HTML, "Bad")
        board.update(HTML, state="failed", words=HTML)
        event = happened(camera="cab", words=HTML, kind=HTML, label=HTML, state="opened", end=None, at=time.time())
        live(street, "cab", open=[event.as_dict()], gauge_name=HTML, source=HTML)
        say(street, event)
        with Page(chromium, street) as page:
            page.locator(".event .words").get_by_text(HTML).wait_for()
            card(page, HTML).locator("h3").get_by_text(HTML).wait_for()
            card(page, HTML).locator(".notice-over").get_by_text(HTML).wait_for()
            card(page, "cab").locator(".now").get_by_text(HTML).wait_for()
            page.locator(".event .thumb").click()
            page.locator("#player-words").get_by_text(HTML).wait_for()
            assert page.locator("b").count() == 0
            assert page.locator("img[src=x]").count() == 0
            assert "hacked" not in page.title()


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_is_wide_enough(chromium: Any, street: Street, scheme: str) -> None:
    now = time.time()
    long = "a driver whose eyes have been off the road for 12 s, with a phone in the hand"
    remember(street, happened(at=now - 9, words=long), happened("cab-s-2", at=now - 99, camera="cab", level="alarm"))
    street.board.update("yard", state="lost", words="averyveryverylongnameofahostthathasnoplacetobreak.example:554")
    with Page(chromium, street, 360, 740, color_scheme=scheme, has_touch=True, is_mobile=True) as page:
        page.get_by_text(long).wait_for()
        card(page, "yard").get_by_text("No signal").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for button in page.get_by_role("button").all():
            if button.is_visible():
                box = button.bounding_box()
                assert box["height"] >= 30
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= 360
        assert page.locator("html").get_attribute("data-theme") == scheme
        page.locator(".thumb").first.click()
        box = page.get_by_role("dialog").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_everything_is_reached_by_keyboard_and_has_a_name(chromium: Any, street: Street) -> None:
    remember(street, happened(at=time.time() - 9))
    with Page(chromium, street) as page:
        page.get_by_text("a phone in the hand").wait_for()
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate(
                    "() => { const it = document.activeElement; return it.ariaLabel || it.innerText || it.id }"
                )
            )
        for name in ("Skip to the events", "Sound off", "Theme: system", "by-new"):
            assert name in reached, reached
        assert any(name.startswith("Acknowledge: a phone") for name in reached)
        assert any(name.startswith("Show: a phone") for name in reached)
        page.get_by_role("button", name="Acknowledge").focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Undo").wait_for()
        until(lambda: page.evaluate("document.activeElement.textContent") == "Undo")  # the focus is not lost
        nameless = page.locator("button, select, input, canvas, [role=meter]").evaluate_all(
            "all => all.filter(it => !it.ariaLabel && !it.innerText && !it.labels?.length && !it.hidden).length"
        )
        assert nameless == 0


def test_theme_and_sound_are_chosen_and_kept(chromium: Any, street: Street) -> None:
    with Page(chromium, street, color_scheme="dark") as page:
        page.get_by_role("button", name="Theme: system").click()
        page.get_by_role("button", name="Theme: dark").click()
        assert page.locator("html").get_attribute("data-theme") == "light"
        sound = page.locator("#sound")
        sound.click()
        until(lambda: sound.inner_text() == "Sound on")
        page.evaluate(COUNT_TONES)
        say(street, happened("cab-s-7", time.time(), level="warn", state="opened", end=None))
        say(street, happened("cab-s-8", time.time(), level="alarm", state="opened", end=None))
        until(lambda: page.evaluate("window.tones") == 3)  # of the alarm; the warning is silent
        page.reload()
        until(lambda: page.locator("#sound").get_attribute("aria-pressed") == "true")
        assert page.locator("html").get_attribute("data-theme") == "light"


def test_a_token_is_asked_for_and_lets_in(chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR", "a long token")
    with opened(tmp_path, token="$DOOR") as street:
        live(street, "cab")
        with Page(chromium, street) as page:
            page.get_by_label("Token").fill("a wrong token")
            page.get_by_role("button", name="Log in").click()
            page.get_by_text("Wrong token").wait_for()
            page.keyboard.press("Escape")
            assert page.locator("#login").is_visible()  # there is no way around it
            assert page.locator(".camera").count() == 0
            street.server._app.state.hub.patience._wrong.clear()
            page.get_by_label("Token").fill("a long token")
            page.keyboard.press("Enter")
            card(page, "cab").wait_for()
            until(lambda: street.board.asked("cab", "picture") == 1)
            assert page.evaluate("document.cookie") == ""  # HttpOnly
            page.reload()
            card(page, "cab").wait_for()
            page.get_by_role("button", name="Log out").click()
            page.get_by_label("Token").wait_for()


def test_who_does_not_look_costs_nothing(chromium: Any, street: Street) -> None:
    with Page(chromium, street) as page:
        until(lambda: street.board.asked("cab", "picture") == 1)
        hide = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});" \
               "document.dispatchEvent(new Event('visibilitychange')) }"  # fmt: skip
        page.evaluate(hide, True)
        until(lambda: street.board.asked("cab", "picture") == 0)
        page.evaluate(hide, False)
        until(lambda: street.board.asked("cab", "picture") == 1)
