"""The README's two commands are there, and CI runs what the second one says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """Lines of the README's shell blocks, without their comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_no_placeholder_is_left() -> None:
    assert "@@" not in (ROOT / "README.md").read_text(encoding="utf-8")


def steps(line: str) -> list[str]:
    """The parts of a chain of commands, each without the program that runs it: which Python is another matter."""
    return [part.strip().partition(" ")[2] for part in line.split("&&")]


def test_one_line_installs_and_shows_it_working() -> None:
    (line,) = [line for line in commands() if line.endswith("mnet-det quickstart")]
    assert re.search(r"tools/install\.py train && \S*mnet-det quickstart$", line)


def test_one_line_installs_and_runs_the_tests() -> None:
    (line,) = [line for line in commands() if "pytest" in line]
    assert re.search(r"tools/install\.py dev && \S+ -m pytest$", line)


def test_ci_takes_the_steps_of_the_test_line() -> None:
    (line,) = [line for line in commands() if "pytest" in line]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace('"$environment/.venv"', ".venv")
    taken = [line.partition(" ")[2] for line in script.splitlines()]
    assert [step for step in steps(line) if step not in taken] == []


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("mnet-det ")])
def test_a_command_of_the_readme_names_a_verb_and_options_that_exist(line: str) -> None:
    from typer.main import get_command

    from mnet_det.cli import app

    command: Any = get_command(app)
    words = line.split()[1:]
    while hasattr(command, "commands"):  # `weights` has verbs of its own
        verb, *words = words
        assert verb in command.commands
        command = command.commands[verb]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


@pytest.mark.parametrize("line", [line for line in commands() if "configs/" in line])
def test_a_config_of_the_readme_exists(line: str) -> None:
    paths = re.findall(r"configs/\S+\.yaml", line)
    assert paths
    assert all((ROOT / path).is_file() for path in paths)
