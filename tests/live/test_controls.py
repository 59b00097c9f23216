"""Keys and page alike: what a viewer asks for, and what that changes."""

from __future__ import annotations

import pytest

from mnet_det.live.controls import Command, Controls, Settings, commands_of


def test_keys_mean_what_the_help_says():
    assert [command.action for command in commands_of("q\x1b srm+=-o[]")] == [
        *("quit", "quit", "pause", "snapshot", "record", "mirror"),
        *("raise_score", "raise_score", "lower_score", "own_score", "previous_model", "next_model"),
    ]
    assert commands_of("xhf\xff") == []  # full screen and help are the screen's own


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ({"action": "quit"}, Command("quit")),
        ({"action": "pause", "value": None}, Command("pause")),
        ({"action": "score", "value": 0.25}, Command("score", 0.25)),
        ({"action": "own_score"}, Command("own_score")),
        ({"action": "nms", "value": 1}, Command("nms", 1)),
        ({"action": "model", "value": 3}, Command("model", 3)),
        ({"action": "classes", "value": ["cat", "dog"]}, Command("classes", ("cat", "dog"))),
        ({"action": "classes", "value": []}, Command("classes", ())),
    ],
)
def test_page_s_messages_become_commands(message, command):
    assert Command.parse(message) == command


@pytest.mark.parametrize(
    "message",
    [
        *(None, [], "quit", {}, {"action": "exec"}, {"action": ["quit"]}, {"action": "quit", "value": 1}),
        *(
            {"action": "own_score", "value": 0.5},
            {"action": "score"},
            {"action": "score", "value": "0.5"},
            {"action": "score", "value": 1.5},
        ),
        *({"action": "score", "value": True}, {"action": "nms", "value": float("nan")}, {"action": "model"}),
        *({"action": "model", "value": -1}, {"action": "model", "value": 0.5}, {"action": "model", "value": 1e9}),
        *({"action": "classes", "value": "cat"}, {"action": "classes", "value": [1]}),
    ],
    ids=repr,
)
def test_other_messages_are_refused(message):
    with pytest.raises(ValueError, match=r"expected an action|not a value for it"):
        Command.parse(message)


def test_score_s_keys_stay_inside_their_range():
    controls = Controls(settings=Settings(score=0.9))
    for _ in range(5):
        controls.obey(Command("raise_score"))
    assert controls.settings.score == 0.95
    for _ in range(50):
        controls.obey(Command("lower_score"))
    assert controls.settings.score == 0.05


def test_score_beyond_the_keys_range_never_goes_the_other_way():
    controls = Controls(settings=Settings(score=0.01))
    controls.obey(Command("lower_score"))
    assert controls.settings.score == 0.01
    controls.obey(Command("score", 0.99))
    controls.obey(Command("raise_score"))
    assert controls.settings.score == 0.99


def test_keys_begin_at_a_half_where_each_model_has_its_own_score():
    for action, score in (("raise_score", 0.55), ("lower_score", 0.45)):
        controls = Controls()
        assert controls.settings.score is None
        controls.obey(Command(action))
        assert controls.settings.score == score
        controls.obey(Command("own_score"))
        assert controls.settings.score is None


def test_models_come_round():
    controls = Controls(models=3)
    seen = []
    for action in ("next_model", "next_model", "next_model", "previous_model"):
        controls.obey(Command(action))
        seen.append(controls.settings.model)
    assert seen == [1, 2, 0, 2]
    controls.obey(Command("model", 1))
    controls.obey(Command("model", 3))  # there is none
    assert controls.settings.model == 1


def test_the_others_switch_over_or_set():
    controls = Controls()
    for command in (Command("mirror"), Command("nms", 0.3), Command("classes", ("cat",)), Command("pause")):
        controls.obey(command)
    assert controls.settings == Settings(mirror=True, nms=0.3, classes=("cat",))
    assert controls.paused
    controls.obey(Command("mirror"))
    controls.obey(Command("pause"))
    controls.obey(Command("snapshot"))
    assert (controls.settings.mirror, controls.paused, controls.quit) == (False, False, False)
    controls.obey(Command("quit"))
    assert controls.quit
