"""Which screen a word asks for."""

from __future__ import annotations

from collections.abc import Callable

from mnet_det.errors import MnetDetError
from mnet_det.live.screen import NoScreen, Screen
from mnet_det.live.window import WindowScreen, why_no_window

SCREENS = ("auto", "window", "browser", "none")


def require_screen(word: str) -> None:
    """Refuse a word that means no screen.

    Raises:
        MnetDetError: it does not.
    """
    if word not in SCREENS:
        raise MnetDetError(f"screen: got {word!r}, expected {', '.join(SCREENS[:-1])} or {SCREENS[-1]}")


def pick_screen(
    word: str,
    *,
    live: bool = False,
    host: str = "127.0.0.1",
    port: int | None = None,
    say: Callable[[str], None] = print,
) -> Screen:
    """The screen that a word asks for.

    Args:
        word: "window", "browser", "none", or "auto": a window where one can be opened; else the page for a live source,
            and none for a file, which then runs through as fast as it can.
        live: the source is live.
        host: the address that the page is served at.
        port: its port; the usual one, or if that is taken any that is free, unless given.
        say: told in a line why "auto" found no window, where the page is, or which keys there are.

    Raises:
        MnetDetError: no such screen, a window that cannot be opened, or a page that cannot be served.
    """
    require_screen(word)
    if word in ("auto", "window"):
        reason = why_no_window()
        if reason is None:
            say("keys: q quit, space pause, s snapshot, r record, + and - score, [ and ] model, h for the others")
            return WindowScreen()
        if word == "window":
            raise MnetDetError(f"a window cannot be opened: {reason}; or watch on a page: --screen browser")
        say(f"no window: {reason}{'' if live else '; to watch on a page: --screen browser'}")
        word = "browser" if live else "none"
    if word == "none":
        return NoScreen()
    from mnet_det.live.browser import BrowserScreen  # its server costs time to import

    return BrowserScreen(host=host, port=port, say=say)
