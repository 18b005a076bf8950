"""Temperature, clock and throttling as the kernel tells; latency over minutes without a pause."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

import numpy as np

from stillwatch.run import NO_PROGRESS, Progress

SYS = Path("/sys")
# Bits of `vcgencmd get_throttled` that hold now (16 higher: since the start), by Raspberry Pi's documentation
PI = {0: "voltage too low", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}


class Heat(TypedDict):
    celsius: float | None  # the hottest zone
    mhz: float | None  # mean of the cores now
    most_mhz: float | None  # of the fastest
    throttled: list[str]  # by what, now


class Stretch(Heat):
    """Calls of a few seconds, and the machine after them."""

    seconds: float  # since the first call
    calls: int
    p50: float  # ms
    p95: float


class Soak(TypedDict):
    name: str
    runtime: str
    threads: int
    minutes: float
    series: list[Stretch]


def read() -> Heat:
    """None: not known here."""
    temperatures = [value / 1000 for value in _numbers("class/thermal/thermal_zone*/temp")]
    cores = "devices/system/cpu/cpu[0-9]*/cpufreq"
    now, most = (_numbers(f"{cores}/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
    flags = 0
    if tool := shutil.which("vcgencmd"):  # Raspberry Pi's
        with suppress(OSError, ValueError, subprocess.TimeoutExpired):
            done = subprocess.run([tool, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
            flags = int(done.stdout.strip().partition("=")[2], 16)
    throttled = [PI[bit] for bit in PI if flags >> bit & 1]
    for device in sorted((SYS / "class/thermal").glob("cooling_device*")):
        with suppress(OSError, ValueError):
            kind, state = (device / "type").read_text().strip(), int((device / "cur_state").read_text())
            if state and re.search(r"cpu|processor", kind, re.IGNORECASE):
                throttled.append(f"{kind} {state}")
    return Heat(
        celsius=round(max(temperatures), 1) if temperatures else None,
        mhz=round(float(np.mean(now)) / 1000) if now else None,
        most_mhz=round(max(most) / 1000) if most else None,
        throttled=throttled,
    )


def soak(call: Callable[[], object], minutes: float, progress: Progress = NO_PROGRESS) -> list[Stretch]:
    """Call without a pause; at most 120 stretches of a second or more."""
    series, begun = list[Stretch](), time.monotonic()
    length, said = max(60 * minutes / 120, 1.0), begun
    while (start := time.monotonic()) - begun < 60 * minutes or not series:
        times = list[float]()
        while time.monotonic() - start < length:
            before = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - before))
        p50, p95 = (round(float(value), 4) for value in np.percentile(times, [50, 95]))
        now = time.monotonic()
        series.append(Stretch(seconds=round(now - begun, 1), calls=len(times), p50=p50, p95=p95, **read()))
        if now - said > 30:
            said = now
            progress.say(f"{(now - begun) / 60:.1f} of {minutes:g} minutes: {told(series[-1], p50)}")
    return series


def told(heat: Heat, p50: float | None = None) -> str:
    words = [f"p50 {p50:.4g} ms" if p50 is not None else ""]
    words += [f"{heat['celsius']:.0f} °C" if heat["celsius"] is not None else ""]
    words += [f"{heat['mhz']:.0f} of {heat['most_mhz'] or heat['mhz']:.0f} MHz" if heat["mhz"] is not None else ""]
    words += [f"throttled ({', '.join(heat['throttled'])})" if heat["throttled"] else ""]
    return ", ".join(filter(None, words)) or "the kernel tells neither temperature nor clock"


def _numbers(pattern: str) -> list[int]:
    found = []
    for path in SYS.glob(pattern):
        with suppress(OSError, ValueError):  # a zone may be asleep
            found.append(int(path.read_text()))
    return found
