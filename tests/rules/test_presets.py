"""Profiles: what is looked for under a rule, and what a rule may not say."""

from typing import Any

import pytest

from stillwatch.errors import UserError
from stillwatch.recipe import Rule
from stillwatch.rules.events import LEVELS
from stillwatch.rules.presets import KEYS, indicators, profile, words
from stillwatch.rules.profiles import PROFILES

LABELS = ["DangerousDriving", "Distracted", "Drinking", "SafeDriving", "SleepyDriving", "Yawn"]
DRIVER = Rule(profile="driver")
FACE = ("spells", "unseen")  # they need no label


def driver(**keys: Any) -> dict[str, Any]:
    rule = Rule.model_validate({"profile": "driver", **keys})
    return {one.kind: one for one in indicators(rule, LABELS, ["SafeDriving"])}


def test_every_number_of_a_table_belongs_to_its_indicator_and_has_a_source() -> None:
    seen = 0
    for preset in PROFILES.values():
        for one in preset.indicators.values():
            seen += 1
            assert one.source and one.how in KEYS
            assert len(one.levels) == len(one.after or one.at)
            assert set(one.levels) <= set(LEVELS)
            assert not one.lost or len(one.lost) == len(one.levels)
            assert one.release <= one.merge or one.how not in ("hold", "unsure")
    assert seen == 16


def test_the_driver_is_watched_for_what_the_labels_say() -> None:
    found = driver()
    assert list(found) == [
        "distraction", "glances", "short-glances", "sleep", "perclos", "blinks", "long-blinks", "head-drop", "yawns",
        "phone", "drinking", "unsure", "no-face", "camera",
    ]  # fmt: skip
    assert found["distraction"].after == (3.0, 5.0, 11.0)
    assert (found["glances"].at, found["glances"].window, found["glances"].back) == ((10.0,), 30.0, 2.0)
    assert found["sleep"].after == (1.0, 3.0, 6.0)
    assert found["perclos"].at == (0.10, 0.15)


def test_an_indicator_whose_label_is_not_in_the_bundle_is_off() -> None:
    found = indicators(DRIVER, ["Distracted", "Fine"], ["Fine"])
    assert [one.kind for one in found if one.how not in FACE] == ["distraction", "glances", "unsure", "camera"]
    assert "off: sleep, perclos, yawns, phone, drinking" in words(DRIVER, ["Distracted", "Fine"], ["Fine"])


def test_where_no_label_is_safe_an_unlikely_one_is_not_unsure() -> None:
    assert "unsure" not in {one.kind for one in indicators(DRIVER, ["Distracted"], [])}
    assert "unsure" not in driver(unsure=0)


def test_a_driver_with_strange_labels_has_nothing_to_be_watched_for() -> None:
    with pytest.raises(UserError, match=r"rule.profile = 'driver': it looks for Distracted, .* only a, b; set rule"):
        indicators(DRIVER, ["a", "b"], ["a"])
    with pytest.raises(UserError, match="labels that are not safe"):
        indicators(Rule(), ["a", "b"], ["a", "b"])
    rule = Rule(profile="driver", indicators={"distraction": {"labels": ["b"]}})
    found = indicators(rule, ["a", "b"], ["a"])
    assert [one.kind for one in found if one.how not in FACE] == ["distraction", "unsure", "camera"]


def test_evidence_has_the_name_of_its_only_label_and_the_nearest_threshold() -> None:
    labels, safe = ["NonViolence", "Gun Shot"], ["NonViolence"]
    (one, camera) = indicators(Rule(), labels, safe)
    assert (one.kind, one.labels, one.threshold, camera.kind) == ("gun-shot", ("Gun Shot",), 0.5, "camera")
    assert indicators(Rule(), labels, safe, 0.8)[0].threshold == 0.8
    assert indicators(Rule(threshold=0.7), labels, safe, 0.8)[0].threshold == 0.7
    rule = Rule(threshold=0.7, indicators={"gun-shot": {"threshold": 0.9}})
    assert indicators(rule, labels, safe, 0.8)[0].threshold == 0.9
    several = indicators(Rule(), [*labels, "Fire"], safe)[0]
    assert (several.kind, several.labels) == ("incident", ("Gun Shot", "Fire"))


def test_a_rule_changes_what_it_names() -> None:
    found = driver(
        cooldown=20,
        off=["yawns"],
        indicators={
            "distraction": {"after": [2, 4]},
            "phone": {"after": 1, "cooldown": 7},
            "perclos": {"at": [0.2, 0.3]},
        },
    )
    assert "yawns" not in found
    assert (found["distraction"].after, found["distraction"].levels) == ((2.0, 4.0), ("notice", "warn"))
    assert (found["distraction"].cooldown, found["phone"].cooldown) == (20, 7)
    assert (found["phone"].after, found["phone"].levels) == ((1.0,), ("notice",))
    assert found["distraction"].source.endswith("changed: after")
    assert profile(Rule(profile="driver", smooth=1, unsure=0.3)).smooth == 1
    assert driver(indicators={"phone": {"after": 4, "levels": "alarm"}})["phone"].levels == ("alarm",)
    assert driver(indicators={"phone": {"on": 0.3}})["phone"].off == 0.3


def test_a_new_indicator_is_like_one_of_the_table() -> None:
    rule = Rule(profile="driver", indicators={"smoking": {"like": "phone", "labels": ["Smoking"]}})
    found = {one.kind: one for one in indicators(rule, ["Smoking", "Distracted", "Fine"], ["Fine"])}
    assert (found["smoking"].how, found["smoking"].after) == ("hold", (3.0, 5.0, 11.0))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"off": ["yawn"]}, "rule.off = 'yawn': unknown indicator; did you mean 'yawns'?"),
        (
            {"indicators": {"distracton": {}}},
            "rule.indicators.distracton: unknown indicator; did you mean 'distraction'?",
        ),
        ({"indicators": {"phone": {"aftr": 3}}}, "rule.indicators.phone.aftr: unknown key; did you mean 'after'?"),
        ({"indicators": {"phone": {"at": 3}}}, "rule.indicators.phone.at: unknown key"),
        ({"indicators": {"phone": {"labels": "Yawm"}}}, "labels = 'Yawm': unknown; did you mean 'Yawn'?"),
        ({"indicators": {"phone": {"levels": ["warm"]}}}, "levels = 'warm': unknown; did you mean 'warn'?"),
        ({"indicators": {"phone": {"levels": ["warn", "notice", "alarm"]}}}, "levels rising"),
        ({"indicators": {"phone": {"levels": ["notice"]}}}, r"levels = \['notice'\]: 3 numbers need as many levels"),
        ({"indicators": {"phone": {"after": [1, 2, 3, 4]}}}, "4 numbers need as many levels"),
        ({"indicators": {"phone": {"after": [3, 2]}}}, "numbers above 0 that rise"),
        ({"indicators": {"phone": {"after": []}}}, "numbers above 0 that rise"),
        ({"indicators": {"phone": {"after": "3"}}}, "wanted: a number from 0 up, or a list"),
        ({"indicators": {"phone": {"merge": -1}}}, r"rule.indicators.phone.merge = -1: wanted: a number from 0 up$"),
        ({"indicators": {"phone": {"merge": [1]}}}, "wanted: one number"),
        ({"indicators": {"sleep": {"wins": "faces"}}}, "rule.indicators.sleep.wins = 'faces': unknown; known: net"),
        ({"indicators": {"phone": {"on": 1.5}}}, "must lie between 0 and 1"),
        ({"indicators": {"phone": {"off": 0.9}}}, "off = 0.9: must lie above 0 and not above on = 0.63"),
        ({"indicators": {"perclos": {"window": 0}}}, "window = 0: must lie above 0"),
        ({"indicators": {"distraction": {"recover": [1, 5]}}}, "that of empty above that of full"),
        ({"indicators": {"camera": {"lost": [1]}}}, "as many levels"),
        ({"indicators": {"smoking": {"like": "phon"}}}, "rule.indicators.smoking.like = 'phon': .*mean 'phone'"),
        ({"indicators": {"smoking": {"like": "phone"}}}, "rule.indicators.smoking.labels: missing"),
        (
            {"threshold": 0.7},
            "rule.threshold = 0.7: profile 'driver' gathers no evidence; .*rule.indicators.distraction.on",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        driver(**keys)


def test_the_indicators_in_words() -> None:
    lines = words(Rule(profile="driver", off=["glances"]), [*LABELS, "Smoking"], ["SafeDriving"])
    assert lines[0] == (
        "distraction: Distracted or head turned away, counted off an awareness that comes back faster than it goes: "
        "notice after 3 s, warn after 5 s, alarm after 11 s, silent for 5 s afterwards unless worse (openpilot; 3 s is "
        "also Euro NCAP's long distraction, by secondary sources)"
    )
    assert lines[-3:] == [
        "off: glances",
        "nobody looks at: Smoking",
        "probabilities are smoothed over 0.25 s; a frame whose largest probability is below 0.5 accuses nobody",
    ]
    (violence, *_) = words(Rule(), ["NonViolence", "Violence"], ["NonViolence"], 0.8312)
    assert violence.startswith(
        "violence: evidence of Violence, full after 3 s at or above 0.831, empty after 8 s below"
    )
    assert any("no label is safe" in line for line in words(Rule(), ["a", "b"]))
