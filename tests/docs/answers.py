"""Whether an answer is what a page shows. ``…`` stands for what the page leaves out."""

from __future__ import annotations

import json
import re
from typing import Any

_REST = "…"


def last_json(output: str) -> Any:
    """The last JSON value of what a block of commands printed."""
    decoder, found, place = json.JSONDecoder(), None, 0
    while starts := re.compile(r"[\[{]").search(output, place):
        try:
            found, place = decoder.raw_decode(output, starts.start())
        except json.JSONDecodeError:
            place = starts.end()
    assert found is not None, f"no JSON was printed: {output!r}"
    return found


def read_shown(text: str) -> Any:
    """JSON as a page has it: numbers keep the digits they are shown with."""
    return json.loads(text, parse_float=_ShownNumber)


class _ShownNumber(float):
    """A number of a page, compared as far as it is printed."""

    digits: int

    def __new__(cls, text: str) -> _ShownNumber:
        number = super().__new__(cls, text)
        number.digits = len(text.partition(".")[2]) if "e" not in text.lower() else 300
        return number


def check(shown: Any, answered: Any, place: str = "$") -> None:
    """Hold an answer to what is shown; the first difference is an error that names its place."""
    if shown == _REST:
        return
    if isinstance(shown, dict):
        assert isinstance(answered, dict), f"{place}: {answered!r} is no object"
        rest = _REST in shown
        named = {key: value for key, value in shown.items() if key != _REST}
        missing, further = named.keys() - answered.keys(), answered.keys() - named.keys()
        assert not missing, f"{place}: {sorted(missing)} are not in the answer"
        assert rest == bool(further), f"{place}: the answer also has {sorted(further)}"
        for key, value in named.items():
            check(value, answered[key], f"{place}.{key}")
    elif isinstance(shown, list):
        assert isinstance(answered, list), f"{place}: {answered!r} is no list"
        rest = bool(shown) and shown[-1] == _REST
        items = shown[:-1] if rest else shown
        assert len(answered) > len(items) if rest else len(answered) == len(items), (
            f"{place}: the answer has {len(answered)} items"
        )
        for number, item in enumerate(items):
            check(item, answered[number], f"{place}[{number}]")
    elif isinstance(shown, _ShownNumber):
        assert isinstance(answered, float | int), f"{place}: {answered!r} is no number"
        assert round(answered, shown.digits) == shown, f"{place}: {answered!r}, not {shown!r}"
    elif isinstance(shown, str) and _REST in shown:
        assert is_like(shown, answered), f"{place}: {answered!r}, not {shown!r}"
    else:
        assert type(shown) is type(answered), f"{place}: {answered!r}, not {shown!r}"
        assert shown == answered, f"{place}: {answered!r}, not {shown!r}"


def is_like(shown: str, printed: str) -> bool:
    """Whether a text is the one shown, with anything in place of ``…``."""
    pattern = ".*".join(map(re.escape, shown.split(_REST)))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None
