"""Heat: what a kernel's files and the Pi's firmware tell, and the latency of minutes cut into stretches."""

import time
from pathlib import Path

import pytest

from stillwatch.evaluation import heat


def test_a_board_tells_its_temperature_its_clock_and_what_slows_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "class/thermal/thermal_zone0/temp": "48312", "class/thermal/thermal_zone1/temp": "61000",
        "class/thermal/thermal_zone2/temp": "asleep", "class/thermal/cooling_device0/type": "thermal-cpufreq-0",
        "class/thermal/cooling_device0/cur_state": "2", "class/thermal/cooling_device1/type": "pwm-fan",
        "class/thermal/cooling_device1/cur_state": "3", "class/thermal/cooling_device2/type": "Processor",
        "class/thermal/cooling_device2/cur_state": "0",
    }  # fmt: skip
    for core, now in ((0, 1500000), (1, 600000)):
        files[f"devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"] = str(now)
        files[f"devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq"] = "1800000"
    for name, text in files.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text + "\n")
    tool = here / "vcgencmd"
    tool.write_text("#!/bin/sh\necho throttled=0x50005\n")
    tool.chmod(0o755)
    monkeypatch.setattr(heat, "SYS", here)
    monkeypatch.setenv("PATH", str(here), prepend=":")
    slow = ["voltage too low", "throttled", "thermal-cpufreq-0 2"]
    assert heat.read() == {"celsius": 61.0, "mhz": 1050, "most_mhz": 1800, "throttled": slow}
    assert heat.told(heat.read()) == f"61 °C, 1050 of 1800 MHz, throttled ({', '.join(slow)})"
    tool.write_text("#!/bin/sh\nexit 1\n")
    assert heat.read()["throttled"] == slow[2:]


def test_a_machine_that_tells_nothing_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "SYS", here)
    monkeypatch.setenv("PATH", "")
    assert heat.read() == {"celsius": None, "mhz": None, "most_mhz": None, "throttled": []}
    assert heat.told(heat.read()).startswith("the kernel tells neither")


def test_minutes_are_cut_into_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += 0.5 if clock[0] < 300 else 1.0  # warm after five minutes

    series = heat.soak(call, 10)
    assert len(series) == 120
    assert (series[0]["p50"], series[-1]["p50"], series[-1]["p95"]) == (500.0, 1000.0, 1000.0)
    assert series[-1]["seconds"] == pytest.approx(600)
    assert series[0]["calls"] == 10
