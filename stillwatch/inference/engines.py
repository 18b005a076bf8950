"""Engines that run our calls on other machines: Ray. Calls save their own results."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from logging import ERROR
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from stillwatch.errors import UserError, nearest, one_line

T = TypeVar("T")
RETRIES = 3  # of a call whose process or machine died
AHEAD = 1000  # calls that wait in the engine at once
PATIENCE = 10  # s to reach a cluster; Ray itself tries for a quarter of an hour
QUIET = {"RAY_usage_stats_enabled": "0", "RAY_usage_stats_prompt_enabled": "0", "RAY_DEDUP_LOGS": "0"}


def check(on: str) -> None:
    """Raises UserError for an engine that is unknown, or not installed."""
    if on != "ray" and not on.startswith("ray://"):
        raise UserError(f"--on {on}: is ray, or ray://HOST:PORT{nearest(on, ['ray'])}")
    os.environ.update(QUIET)  # before its import: nothing is sent home
    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError(f"--on {on}: Ray is not installed; pip install 'stillwatch[ray]' brings it") from None


def over(
    calls: Sequence[Callable[[], T]], on: str, workers: int | None = None, gpus: int = 0
) -> Iterator[tuple[int, T | str]]:
    """(call's number, its result or why its process died), as they end.

    on: "ray": RAY_ADDRESS's cluster, or one of `workers` here; "ray://HOST:PORT". A call takes one core and `gpus`, and
    must find this package and working directory there. Raises UserError.
    """
    check(on)
    import ray

    address = None if on == "ray" else on
    here = address is None and not os.environ.get("RAY_ADDRESS")
    if not here:
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # one try, 40 s: what answers may be no Ray
        _reach(*(("--on ", on) if address else ("RAY_ADDRESS = ", os.environ["RAY_ADDRESS"])))
    try:
        ray.init("local" if here else address, num_cpus=workers if here else None,
                 include_dashboard=False if here else None, log_to_driver=False, logging_level=ERROR)  # fmt: skip
    except Exception as error:  # it has no error of its own for this
        token = address and os.environ.get("RAY_AUTH_MODE") != "token"  # what a cluster that wants one does not say
        hint = "; if it wants its token: export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if token else ""
        raise UserError(f"--on {on}: does not answer: {one_line(error)}{hint}") from None
    try:
        remote: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_call)
        waiting, running = iter(enumerate(calls)), dict[ray.ObjectRef, int]()
        while True:
            for number, call in islice(waiting, AHEAD - len(running)):
                running[remote.remote(call, str(Path.cwd()))] = number
            if not running:
                return
            ready = ray.wait(list(running))[0][0]
            number = running.pop(ready)
            try:
                yield number, ray.get(ready)
            except ray.exceptions.RayError as error:
                yield number, one_line(getattr(error, "cause", None) or error)
    finally:
        ray.shutdown()


def _reach(place: str, address: str) -> None:
    scheme, _, rest = address.rpartition("://")
    if address in ("auto", "local") or scheme not in ("", "ray"):  # Ray finds these by itself
        return
    try:
        parts = urlsplit(f"//{rest}")
        if not parts.hostname or not parts.port:
            raise ValueError
    except ValueError:
        form = f"{'ray://' * bool(scheme)}HOST:PORT"
        raise UserError(f"{place}{address}: is written {form}, as `ray start` prints it") from None
    try:
        socket.create_connection((parts.hostname, parts.port), PATIENCE).close()
    except OSError as error:
        why = one_line(error)
        raise UserError(f"{place}{address}: does not answer: {why}; `ray status` there says more") from None


def _call(call: Callable[[], T], folder: str) -> T:
    os.chdir(folder)  # relative paths mean the same there
    return call()
