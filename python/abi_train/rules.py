"""Rules of configuration fields: what one value must satisfy, and the words when it does not.

A field of a configuration is a dataclass field with a `Rule` in its metadata, made by one of the
small functions below; `check_field` applies it. Does not know: what is configured.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one value must satisfy apart from its type; the native schema prints the same fields."""

    kind: str
    note: str
    minimum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None
    largest: int | None = None
    options: tuple[str, ...] = ()
    optional: bool = False
    words: str = ""


_SHARE: Final = "it must be a finite number, at least 0 and below 1"
_NOT_NEGATIVE: Final = "it must be a finite number, 0 or more"
_POSITIVE: Final = "it must be a finite number above 0"
_TEXT: Final = "it must not be empty or hold a NUL character"


def field(default: Any, rule: Rule) -> Any:
    """A field with a rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def count(
    default: int,
    note: str,
    *,
    least: int = 0,
    largest: int = U32_MAX,
    below: int | None = None,
) -> Any:
    """A whole number from `least`."""
    words = f"it must be a whole number up to {largest if below is None else below - 1}"
    if least:
        words = f"it must be at least {least}"
    rule = Rule(
        kind="int",
        note=note,
        minimum=least,
        largest=largest,
        exclusive_maximum=below,
        words=words,
    )
    return field(default, rule)


def share(default: float, note: str) -> Any:
    """A number from 0 to below 1."""
    rule = Rule(kind="float", note=note, minimum=0, exclusive_maximum=1, words=_SHARE)
    return field(default, rule)


def not_negative(default: float, note: str) -> Any:
    """A number from 0."""
    return field(default, Rule(kind="float", note=note, minimum=0, words=_NOT_NEGATIVE))


def positive(
    default: float, note: str, *, least: float | None = None, largest: int | None = None
) -> Any:
    """A number above 0, from `least` and up to `largest` where these are given."""
    words = _POSITIVE
    if least is not None:
        words += f", from {least:f} to {largest}"
    elif largest is not None:
        words += f" and at most {largest}"
    rule = Rule(
        kind="float", note=note, minimum=least, exclusive_minimum=0, largest=largest, words=words
    )
    return field(default, rule)


def choice(default: str, options: tuple[str, ...], note: str) -> Any:
    """One of some words."""
    words = "it must be one of " + ", ".join(options)
    return field(default, Rule(kind="choice", note=note, options=options, words=words))


def flag(default: bool, note: str) -> Any:
    """True or false."""
    return field(default, Rule(kind="bool", note=note, words="it must be true or false"))


def text(default: str | None, note: str) -> Any:
    """Some text; without a default it may be unset."""
    return field(default, Rule(kind="text", note=note, optional=default is None, words=_TEXT))


def path(note: str) -> Any:
    """A place in the file system, unset without more."""
    return field(None, Rule(kind="path", note=note, optional=True, words="it must be a path"))


def check_field(item: dataclasses.Field[Any], value: Any, *, name: str | None = None) -> Any:
    """The value as the field keeps it. Raises `ConfigError` when its rule is broken."""
    name = name or item.name
    rule: Rule = item.metadata["rule"]
    if rule.kind == "bool":
        ok = isinstance(value, bool)
    elif rule.kind == "int":
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            value = int(value)  # 3.0 is a whole number, as in JSON
        if not isinstance(value, int) or isinstance(value, bool):
            raise broken(name, value, "it must be a whole number")
        limit = rule.largest or U32_MAX
        if rule.exclusive_maximum is not None:
            limit = int(rule.exclusive_maximum) - 1
        if value > limit:
            raise broken(name, value, f"it must be at most {limit}")
        ok = value >= (rule.minimum or 0)
    elif rule.kind == "float":
        value, ok = as_number(value)
        ok = ok and (rule.minimum is None or value >= rule.minimum)
        ok = ok and (rule.exclusive_minimum is None or value > rule.exclusive_minimum)
        ok = ok and (rule.exclusive_maximum is None or value < rule.exclusive_maximum)
        ok = ok and (rule.largest is None or value <= rule.largest)
    elif rule.kind == "path":
        if value is None:
            return None
        if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
            raise broken(name, value, rule.words)
        return Path(value).expanduser()
    elif rule.kind == "choice":
        ok = value in rule.options
    else:
        value = str(value) if isinstance(value, Path) else value
        ok = isinstance(value, str) and value != "" and "\0" not in value
        ok = ok or (value is None and rule.optional)
    if not ok:
        near = difflib.get_close_matches(str(value), rule.options, n=1) if rule.options else []
        raise broken(name, value, rule.words + (f" (did you mean {near[0]}?)" if near else ""))
    return value


def as_number(value: Any) -> tuple[Any, bool]:
    """The value as a float, and whether it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value, False
    try:
        number = float(value)
    except OverflowError:
        return value, False
    return number, math.isfinite(number)


def broken(name: str, value: Any, rule: str) -> ConfigError:
    """The error for a value that breaks a rule: `epochs is 0; it must be at least 1`."""
    plain = isinstance(value, (str, bool)) or value is None
    shown = json.dumps(value, ensure_ascii=False) if plain else str(value)
    return ConfigError(f"{name} is {shown}; {rule}")


def unknown_key(key: str, known: Iterable[str], what: str) -> ConfigError:
    """The error for a key nobody knows, with the nearest known one."""
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"{key!r} is not a key of {what}{hint}")
