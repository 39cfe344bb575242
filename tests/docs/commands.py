"""Commands that no test can run, held to what there is: programs, options, targets and files."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import typer

from service.cli import app
from tests.docs.pages import ROOT

_OPERATORS = {"&&", "||", "|", ";", "&", "\n"}
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*", re.DOTALL)
_FREE = {"curl", "export", "cd", "cat", "echo", "apt-get", "nvidia-smi", "git", "redis-server"}
_EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
_MAKE_TARGETS = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
_IMAGE_TARGETS = set(re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
_TOP_LEVEL = {path.name for path in ROOT.iterdir() if path.is_dir()}


def check_commands(text: str) -> None:
    """Hold a block of shell commands to what there is.

    Raises:
        AssertionError: a program, sub-command, option, target, extra or file does not exist.
    """
    for words in _simple_commands(text):
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        _check_files(arguments)
        if program in _CHECKS:
            _CHECKS[program](arguments)
        else:
            assert program in _FREE or (ROOT / program).is_file(), f"{program} is no program these pages use"


def check_span(span: str) -> None:
    """The same for a command in the middle of a sentence, which may leave out what matters little."""
    words = span.removeprefix(".venv/bin/").split()
    if words[0] == "make" and len(words) > 1:
        _check_make(words[1:])
    elif words[0] == "clipserve":
        command, rest = _find_clipserve(words[1:])
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        unknown = [word for word in rest if word.startswith("-") and word not in known]
        assert not unknown, f"`{span}`: {command.name} has no {unknown}"
    elif words[0] == "pytest":
        _check_files(words)


def _simple_commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        for is_operator, words in groupby(lexer, _OPERATORS.__contains__):
            command = list(words)
            while command and _ASSIGNMENT.fullmatch(command[0]):
                command.pop(0)
            if command and not is_operator:
                yield command


def _check_files(words: list[str]) -> None:
    for word in words:
        path = word.partition("::")[0]
        if path.partition("/")[0] in _TOP_LEVEL and "/" in path:
            assert (ROOT / path).exists(), f"{path} does not exist"


def _check_clipserve(arguments: list[str]) -> None:
    command, rest = _find_clipserve(arguments)
    try:
        command.make_context(command.name, rest).close()
    except Exception as error:
        raise AssertionError(f"clipserve {shlex.join(arguments)}: {error}") from error


def _find_clipserve(arguments: list[str]) -> tuple[Any, list[str]]:
    """The sub-command that is meant, and what is left for it."""
    command: Any = typer.main.get_command(app)
    rest = list(arguments)
    while rest and not rest[0].startswith("-") and (known := getattr(command, "commands", None)):
        name = rest.pop(0)
        assert name in known, f"clipserve has no command {name!r}"
        command = known[name]
    return command, rest


def _check_make(arguments: list[str]) -> None:
    targets = {word for word in arguments if not _ASSIGNMENT.fullmatch(word)}
    assert targets <= _MAKE_TARGETS, f"make knows no {sorted(targets - _MAKE_TARGETS)}"


def _check_pip(arguments: list[str]) -> None:
    for extras in re.findall(r"(?:\.|clipserve)\[([a-z,]+)\]", " ".join(arguments)):
        assert set(extras.split(",")) <= _EXTRAS.keys(), f"clipserve has not all of the extras {extras}"


def _check_docker(arguments: list[str]) -> None:
    if "--target" in arguments:
        target = arguments[arguments.index("--target") + 1]
        assert target in _IMAGE_TARGETS, f"the Dockerfile has no target {target}"
    if arguments[0] == "run" and "clipserve" in arguments:
        _check_clipserve(arguments[arguments.index("clipserve") + 1 :] or ["serve"])


def _check_nothing_else(_: list[str]) -> None:
    """Files were looked at already."""


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "clipserve": _check_clipserve,
    "make": _check_make,
    "pip": _check_pip,
    "docker": _check_docker,
    "kubectl": _check_nothing_else,
    "pytest": _check_nothing_else,
    "python": _check_nothing_else,
}
