"""What a viewer can ask for, by a key or on the page, and what that makes of the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from mnet_det.live.lineup import MOST_MODELS
from mnet_det.runtime.postprocess import VIEWING_SCORE

Action = Literal[
    "quit",
    "pause",
    "snapshot",
    "record",
    "mirror",
    "raise_score",
    "lower_score",
    "own_score",
    "next_model",
    "previous_model",
    "score",
    "nms",
    "classes",
    "model",
]
"""The last four take a value: a probability, an overlap, names (none: all), the number of a model."""

KEYS: Mapping[str, Action] = {
    "q": "quit",
    "\x1b": "quit",  # Escape
    " ": "pause",
    "s": "snapshot",
    "r": "record",
    "+": "raise_score",
    "=": "raise_score",  # + without shift on most keyboards
    "-": "lower_score",
    "o": "own_score",
    "[": "previous_model",
    "]": "next_model",
    "m": "mirror",
}
"""On every screen alike; f (full screen) and h (help) are the screen's own business."""

HELP = {
    "q Esc": "quit",
    "space": "pause",
    "s": "snapshot",
    "r": "record",
    "+ -": "score",
    "o": "each model's own score",
    "[ ]": "model",
    "m": "mirror",
    "f": "full screen",
    "h": "this help",
}

SCORE_STEP = 0.05
LEAST_SCORE, MOST_SCORE = 0.05, 0.95
"""The ends of the keys' range; a network may have something to say about every anchor below."""


@dataclass(frozen=True)
class Command:
    """One wish of a viewer."""

    action: Action
    value: float | tuple[str, ...] | None = None

    @classmethod
    def parse(cls, message: Any) -> Command:
        """What a page sends: {"action": …, "value": …}, the latter for `score`, `nms`, `classes` and `model` alone.

        Raises:
            ValueError: anything else.
        """
        if not isinstance(message, dict) or message.get("action") not in get_args(Action):
            raise ValueError(f"expected an action of {', '.join(get_args(Action))}; got {message!r:.200}")
        action: Action = message["action"]
        value: Any = message.get("value")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if action in ("score", "nms") and number and 0 <= value <= 1:
            return cls(action, value)
        if action == "model" and number and value in range(MOST_MODELS):
            return cls(action, int(value))
        if action == "classes" and isinstance(value, list) and all(isinstance(name, str) for name in value):
            return cls(action, tuple(value))
        if action not in ("score", "nms", "model", "classes") and value is None:
            return cls(action)
        raise ValueError(f"{action}: not a value for it: {value!r:.200}")


@dataclass(frozen=True)
class Settings:
    """How the next frame is looked at.

    Attributes:
        model: which of the models.
        score: least probability of what is drawn and counted; None: each model's own (`Predictor.viewing_score`).
        nms: IoU above which the lesser of two boxes of a class goes; None: the model's own.
        classes: names of those that are drawn and counted; none: all.
        mirror: left and right change places before the network looks.
    """

    model: int = 0
    score: float | None = None
    nms: float | None = None
    classes: tuple[str, ...] = ()
    mirror: bool = False


@dataclass
class Controls:
    """What the viewers have asked for so far."""

    models: int = 1
    settings: Settings = field(default_factory=Settings)
    paused: bool = False
    quit: bool = False

    def obey(self, command: Command) -> None:
        """Follow a command; those that ask for no lasting change do nothing here."""
        settings, value = self.settings, command.value
        score = VIEWING_SCORE if settings.score is None else settings.score
        match command.action:
            case "quit":
                self.quit = True
            case "pause":
                self.paused = not self.paused
            case "raise_score":
                self._set(score=max(score, min(MOST_SCORE, round(score + SCORE_STEP, 2))))
            case "lower_score":
                self._set(score=min(score, max(LEAST_SCORE, round(score - SCORE_STEP, 2))))
            case "own_score":
                self._set(score=None)
            case "next_model":
                self._set(model=(settings.model + 1) % self.models)
            case "previous_model":
                self._set(model=(settings.model - 1) % self.models)
            case "mirror":
                self._set(mirror=not settings.mirror)
            case "model":
                if isinstance(value, int | float) and value < self.models:
                    self._set(model=int(value))
            case "score" | "nms" | "classes":
                self._set(**{command.action: value})

    def _set(self, **changes: object) -> None:
        self.settings = replace(self.settings, **changes)  # type: ignore[arg-type]  # each checked where it came in


def commands_of(keys: Sequence[str]) -> list[Command]:
    """The commands of some keys; those that mean nothing are passed over."""
    return [Command(KEYS[key]) for key in keys if key in KEYS]
