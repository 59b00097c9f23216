"""The report as one page that needs nothing else: template, data and their policy in a single file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any


def fill_page(content: Mapping[str, Any], *, title: str) -> str:
    """The page with its data, which allows no request and no script but its own."""
    template = resources.files("mnet_det.report").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "policy": html.escape(_policy(template)),
        "title": html.escape(" ".join(title.split())),
        "data": embedded(content),
    }
    return re.sub(r"\{\{(policy|title|data)\}\}", lambda place: parts[place[1]], template)


def embedded(content: Mapping[str, Any]) -> str:
    """JSON that can stand within a script element: nothing in it can end that."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _policy(template: str) -> str:
    """Content-Security-Policy that knows the page's own script and style by their hashes."""
    script = _hash_of(template, "<script>", "</script>")
    style = _hash_of(template, "<style>", "</style>")
    own = f"default-src 'none'; script-src {script}; style-src {style}; img-src data:"
    return f"{own}; base-uri 'none'; form-action 'none'"


def _hash_of(template: str, opening: str, closing: str) -> str:
    inner = template.partition(opening)[2].partition(closing)[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
