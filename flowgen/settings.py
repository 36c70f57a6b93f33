"""Settings as nested tables: read from TOML, overridden by dotted keys, written back."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowgen.core import InputError, StrPath, is_utf8

__all__ = ["check_texts", "dump_toml", "flat", "merged", "override", "parse_setting", "read_toml"]


def read_toml(path: StrPath) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        InputError: if it is missing or not TOML.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error


def parse_setting(setting: str) -> tuple[str, Any]:
    """Parse `a.b=value` to a key and a value; the value is read as TOML, and as text where it is not TOML.

    >>> parse_setting("train.lr=3e-4"), parse_setting("path=vp")
    (('train.lr', 0.0003), ('path', 'vp'))
    """
    key, equals, text = setting.partition("=")
    if not (key.strip() and equals):
        raise InputError(f"expected key=value, not {setting!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()


def override(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the tree with `value` at the dotted `key`.

    A name given where the tree has a table of that name keeps the table's parameters; a parameter given where the tree
    has a name makes a table of it. Another size of what has a name takes the parameters of the old size away.

    >>> override({"schedule": "vp"}, "schedule.beta_max", 15.0)
    {'schedule': {'name': 'vp', 'beta_max': 15.0}}
    >>> override({"net": {"name": "dit", "size": "small", "depth": 12}}, "net.size", "base")
    {'net': {'name': 'dit', 'size': 'base'}}
    """
    head, _, rest = key.partition(".")
    present = tree.get(head, {})
    if key == "size" and "name" in tree and present and present != value:
        return {"name": tree["name"], "size": value}
    if rest:
        table = {"name": present} if isinstance(present, str) else dict(present)
        return {**tree, head: override(table, rest, value)}
    same = isinstance(value, str) and isinstance(present, Mapping) and present.get("name") == value
    return {**tree, head: present if same else value}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree `over` with what it lacks taken from `under`; a part that is another one's name or table is not
    mixed.

    >>> merged({"net": {"name": "unet", "size": "small"}, "train": {"lr": 1}}, {"net": "dit", "train": {"steps": 2}})
    {'net': 'dit', 'train': {'lr': 1, 'steps': 2}}
    """
    tree = {**under, **over}
    for key in under.keys() & over.keys():
        a, b = under[key], over[key]
        a, b = ({"name": x} if isinstance(x, str) else x for x in (a, b))
        alike = isinstance(a, Mapping) and isinstance(b, Mapping) and b.get("name", a.get("name")) == a.get("name")
        if alike and not (isinstance(over[key], str) and isinstance(under[key], str)):
            tree[key] = merged(a, b)
    return tree


def check_texts(tree: Mapping[str, Any]) -> None:
    """Refuse a text that is empty, or that TOML cannot hold: names of files need not be UTF-8.

    Raises:
        InputError: for a text that says nothing, or that TOML cannot hold: names of files need not be UTF-8.
    """
    for key, value in flat(tree).items():
        if isinstance(value, str) and not value.strip():
            raise InputError(f"{key} is empty: give a value, or leave it out")
        if isinstance(value, str) and not is_utf8(value):
            raise InputError(f"{key} = {value!r} is not UTF-8, and cannot be kept in config.toml: rename it")


def dump_toml(tree: Mapping[str, Any], prefix: str = "") -> str:
    """Return nested tables of numbers, texts and flags as TOML; keys without a value are left out."""
    plain = {key: x for key, x in tree.items() if x is not None and not isinstance(x, Mapping)}
    tables = {key: x for key, x in tree.items() if isinstance(x, Mapping)}
    lines = [f"{key} = {json.dumps(x, ensure_ascii=False)}\n" for key, x in plain.items()]
    inner = [f"\n[{prefix}{key}]\n{dump_toml(x, f'{prefix}{key}.')}" for key, x in tables.items()]
    return "".join(lines + inner)


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as one, with dotted keys.

    >>> flat({"seed": 0, "train": {"lr": 0.1}})
    {'seed': 0, 'train.lr': 0.1}
    """
    keys: dict[str, Any] = {}
    for key, value in tree.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return keys
