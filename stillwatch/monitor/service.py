"""Serve: a watch with its page and its sinks, from the start to a signal. What `stillwatch watch` runs.

In: a plan, as it was read. Out: nothing but what the sinks, the page and the store hold; it ends on SIGTERM, SIGINT,
after a given time, or when every file has ended.
Called by the CLI. It decides nothing about pictures.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from stillwatch.monitor.config import Read
from stillwatch.monitor.loop import Watch


def serve(read: Read, say: Callable[[str], None], seconds: float | None = None) -> None:
    """Run until a signal, for `seconds`, or until every file has ended; then close everything within 3 s.

    Raises UserError where it cannot start: the bundle, the page's address, no camera, no token.
    """
    from stillwatch.monitor.events.outbox import Dispatcher

    plan = read.plan
    for faults in (read.cameras, read.sinks):
        for words in faults.values():
            say(f"left out: {words}")
    with ExitStack() as opened:
        street = opened.enter_context(Watch(plan, read.cameras, say=say))
        post = Dispatcher(street.store, plan.sink, say, [seat.name for seat in street.seats])
        post.start()
        opened.callback(post.close, 0.5)
        if plan.web.on:
            from stillwatch.monitor.web.app import Server, app

            page = app(street.board, plan.keep.folder, plan, street.store, post, street.gauges)
            server = Server(page, plan.web.host, plan.web.port)
            say(f"page: {server.start()}")
            opened.callback(server.close, 0.5)
        for name, words in street.failed.items():
            if name not in read.cameras:
                say(f"{name}: {words}")
        choice = street.detector.choice
        names = ", ".join(seat.name for seat in street.seats)
        say(f"watching {names}: {choice['file']} in {choice['runtime']}, {choice['ms']:.2f} ms a look")
        with _signals(street.stop):
            if seconds is not None:
                timer = threading.Timer(seconds, street.stop.set)
                timer.daemon = True
                timer.start()
                opened.callback(timer.cancel)
            street.run()
            street.end()
            _settled(street)


def _settled(street: Watch, within: float = 0.3) -> None:
    """Wait until what the end had to say is in the outbox, so that the sinks hear it now and not at the next start."""
    end = time.monotonic() + within
    while street.store.waiting and time.monotonic() < end:
        time.sleep(0.01)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the loop; a second Ctrl-C ends it at once."""

    def end(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
