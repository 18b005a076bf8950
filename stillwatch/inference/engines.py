"""Engines that run our calls on other machines: Ray. Calls save their own results."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from logging import ERROR
from pathlib import Path
from typing import Any, TypeVar

from stillwatch.errors import UserError, nearest, one_line

T = TypeVar("T")
RETRIES = 3  # of a call whose process or machine died
AHEAD = 1000  # calls that wait in the engine at once
QUIET = {"RAY_usage_stats_enabled": "0", "RAY_usage_stats_prompt_enabled": "0", "RAY_DEDUP_LOGS": "0"}


def over(
    calls: Sequence[Callable[[], T]], on: str, workers: int | None = None, gpus: int = 0
) -> Iterator[tuple[int, T | str]]:
    """(call's number, its result or why its process died), as they end.

    on: "ray": RAY_ADDRESS's cluster, or one of `workers` here; "ray://HOST:PORT". A call takes one core and `gpus`, and
    must find this package and working directory there. Raises UserError.
    """
    if on != "ray" and not on.startswith("ray://"):
        raise UserError(f"--on {on}: is ray, or ray://HOST:PORT{nearest(on, ['ray'])}")
    os.environ.update(QUIET)  # before its import: nothing is sent home
    try:
        import ray
    except ImportError:
        raise UserError(f"--on {on}: Ray is not installed; pip install 'stillwatch[ray]' brings it") from None
    address = None if on == "ray" else on
    here = address is None and "RAY_ADDRESS" not in os.environ
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


def _call(call: Callable[[], T], folder: str) -> T:
    os.chdir(folder)  # relative paths mean the same there
    return call()
