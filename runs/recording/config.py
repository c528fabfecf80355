"""A script's dataclass of flags as JSON-ready data, and back without loss."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from runs.recording.errors import RunError

T = TypeVar("T")


def config_to_dict(args: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready data: nested dataclasses become dicts, paths strings, tuples lists.

    Raises:
        ValueError: a field holds something else.
    """
    return {field.name: _encode(getattr(args, field.name), field.name) for field in _fields(args)}


def config_from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `config_to_dict`, by the annotations of `cls`: bool, int, float, str, None, Path, Literal, tuple,
    list, Optional and other unions, nested dataclasses. Fields that `cls.LATER` names may be missing: they have been
    added since runs were recorded.

    Raises:
        RunError: a key is unknown or missing, or a value does not fit its annotation; the key is named.
        ValueError: from the dataclass's own `__post_init__`.
    """
    return _decode_dataclass(cls, data, "")  # type: ignore[no-any-return]


def own_fields_first(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass in the order of a script: its own, then those that it inherits."""
    bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) and base is not cls]
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    return sorted(dataclasses.fields(cls), key=lambda field: field.name in inherited)


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested groups as dotted keys: {"nap": {"enabled": True}} -> {"nap.enabled": True}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": one for below, one in flat(value).items()}
        else:
            found[key] = value
    return found


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _encode(value: Any, name: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_encode(item, name) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _encode(getattr(value, field.name), f"{name}.{field.name}") for field in _fields(value)}
    raise ValueError(f"{name} is a {type(value).__name__}, which a configuration file cannot hold")


def _decode_dataclass(cls: Any, data: Any, name: str) -> Any:
    within = f" in {name}" if name else ""
    if not isinstance(data, Mapping):
        raise RunError(f"configuration key {name} is {data!r}, but a group of keys is expected")
    hints, names = get_type_hints(cls), [field.name for field in _fields(cls)]
    later = {name: _default(cls, name) for name in getattr(cls, "LATER", ()) if name in names and name not in data}
    data = {**later, **data}
    for what, keys in (("unknown", set(data) - set(names)), ("missing", set(names) - set(data))):
        if keys:
            raise RunError(f"the configuration has {what} keys{within}: {', '.join(sorted(map(str, keys)))}")
    return cls(**{key: _decode(hints[key], data[key], f"{name}.{key}".lstrip(".")) for key in names})


def _default(cls: Any, name: str) -> Any:
    """The default of a field, encoded: what a configuration has that was written before the field existed."""
    return _encode(next(field.default for field in _fields(cls) if field.name == name), name)


def _decode(hint: Any, value: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(hint, value, name)
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(hint, value, name)
    if origin in (tuple, list) and isinstance(value, list):
        return origin(_decode(item, v, name) for item, v in zip(_item_hints(hint, value, name), value, strict=True))
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in get_args(hint))
    elif hint is Path:
        return Path(_checked(isinstance(value, str), hint, value, name))
    elif hint in (types.NoneType, None):
        fits = value is None
    elif hint is float:
        fits = type(value) in (int, float)
    else:
        fits = hint in (bool, int, str) and type(value) is hint  # type: ignore[comparison-overlap]
    return _checked(fits, hint, value, name)


def _decode_union(hint: Any, value: Any, name: str) -> Any:
    for choice in get_args(hint):
        try:
            return _decode(choice, value, name)
        except RunError:
            continue
    return _checked(False, hint, value, name)


def _item_hints(hint: Any, value: list[Any], name: str) -> list[Any]:
    items = list(get_args(hint))
    if get_origin(hint) is list:
        items = [items[0], ...]
    if len(items) == 2 and items[1] is ...:
        return [items[0]] * len(value)
    _checked(len(items) == len(value), hint, value, name)
    return items


def _checked(fits: bool, hint: Any, value: Any, name: str) -> Any:
    if not fits:
        wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise RunError(f"configuration key {name} is {value!r}, which is not {wanted}")
    return value
