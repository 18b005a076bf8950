"""Telemetry: libraries that would report on their user to somebody are kept from it, here and nowhere else.

In: nothing. Out: a process in which they cannot. Called before ONNX Runtime, OpenVINO or NNCF is imported.
It imports none of them.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

REPORTER = "openvino_telemetry"


def off() -> None:
    """ONNX Runtime: official builds (1.32: its Privacy.md) send usage to Microsoft unless this stands before."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


@contextmanager
def refused() -> Iterator[None]:
    """OpenVINO and NNCF as well: their import and their converters send events to Google Analytics wherever
    openvino_telemetry can be imported, and have a stub for where it cannot. Afterwards it is as it was."""
    off()
    missing = object()
    before: object = sys.modules.get(REPORTER, missing)
    sys.modules[REPORTER] = None  # type: ignore[assignment]  # an import of it now fails
    try:
        yield
    finally:
        sys.modules.pop(REPORTER, None)
        if before is not missing:
            sys.modules[REPORTER] = before  # type: ignore[assignment]
