"""Runs a watch with its page and sinks until a signal: `stillwatch watch`."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType

from stillwatch.errors import UserError
from stillwatch.monitor.config import LoadedConfig
from stillwatch.monitor.events.outbox import Dispatcher
from stillwatch.monitor.loop import Watch

DESCRIPTORS = 8192  # wanted, where the hard limit allows it
FLUSH = 0.3  # seconds for the last events to reach the outbox


def serve(loaded: LoadedConfig, log: Callable[[str], None], seconds: float | None = None) -> None:
    """Until SIGTERM, SIGINT, SIGHUP, `seconds`, or the end of every file; then closes within 3 s.

    Raises UserError where it cannot start, and where no camera gave a frame.
    """
    config = loaded.config
    for words in (*loaded.bad_cameras.values(), *loaded.bad_sinks.values()):
        log(f"left out: {words}")
    stop, signalled = threading.Event(), threading.Event()
    with ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # cameras and store, beside the page's connections
        enough = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
        if soft != resource.RLIM_INFINITY and soft < enough:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
        stack.callback(os.umask, os.umask(0o077))  # events and clips are this user's alone
        stack.enter_context(_signals(stop, signalled))  # first: a signal during the start must not be lost
        watch = stack.enter_context(Watch(config, loaded.bad_cameras, log, stop))
        names = [slot.name for slot in watch.slots]
        dispatcher = Dispatcher(watch.store, config.sink, log, names)
        dispatcher.start()
        stack.callback(dispatcher.close, 0.5)
        if config.web.on:
            from stillwatch.monitor.web.app import app
            from stillwatch.monitor.web.server import Server

            page = app(watch.board, config.keep.folder, config, watch.store, dispatcher, watch.gauges)
            server = Server(page, config.web.host, config.web.port)
            log(f"page: {server.start()}")
            stack.callback(server.close, 0.5)
        for name in watch.failed.keys() - loaded.bad_cameras.keys():
            log(f"{name}: {watch.failed[name]}")
        choice = watch.detector.choice
        by = f", by {len(watch.workers)} workers" if watch.workers else ""
        what = f"{choice['file']} in {choice['runtime']}, {choice['ms']:.2f} ms a forward{by}"
        log(f"watching {', '.join(names)}: {what}")
        for one in choice["candidates"] if config.runtime else ():
            if "why_not" in one:
                log(f"refused: {one['why_not']}")
        if seconds is not None:
            timer = threading.Timer(seconds, stop.set)
            timer.daemon = True
            timer.start()
            stack.callback(timer.cancel)
        watch.run()
        watch.end()
        end = time.monotonic() + FLUSH
        while watch.store.waiting and time.monotonic() < end:  # so that the sinks hear it now, not at the next start
            time.sleep(0.01)
        if not signalled.is_set() and all(slot.decided is None for slot in watch.slots):
            reasons = "; ".join(f"{slot.name}: {slot.camera.words}" for slot in watch.slots)
            raise UserError(f"no camera gave a frame: {reasons}")


@contextmanager
def _signals(stop: threading.Event, signalled: threading.Event) -> Iterator[None]:
    """A second Ctrl-C ends the loop at once."""

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        signalled.set()
        stop.set()

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if main else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
