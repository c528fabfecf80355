"""Names of modules and parameters that a caller gives: read once, and refused if they are not names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def listed(names: Iterable[str], limit: int = 20) -> str:
    """A list for a message, cut off at a limit."""
    names = list(dict.fromkeys(names))
    return f"{names[:limit]}" + (f" and {len(names) - limit} more" if len(names) > limit else "")


def names_in(argument: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names that a caller gives, read once.

    Raises:
        ValueError: one string, or something that is not a string.
    """
    if isinstance(names, str):
        raise ValueError(f"{argument}={names!r} is one string; give a sequence of names, such as [{names!r}]")
    names = tuple(names)
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"{argument} holds {odd[0]!r}, which is not the name of a module or parameter")
    return names


def pairs_in(argument: str, names: Iterable[str | tuple[str, str]]) -> tuple[tuple[str, str | None], ...]:
    """Names and pairs of names that a caller gives, read once; a single name is paired with None.

    Raises:
        ValueError: one string, or something that is neither a string nor a pair of strings.
    """
    if isinstance(names, str):
        raise ValueError(f"{argument}={names!r} is one string; give a sequence of names, such as [{names!r}]")
    pairs: list[tuple[str, str | None]] = []
    for entry in names:
        if isinstance(entry, str):
            pairs.append((entry, None))
        elif isinstance(entry, Sequence) and len(entry) == 2 and all(isinstance(name, str) for name in entry):
            pairs.append((entry[0], entry[1]))
        else:
            raise ValueError(f"{argument} holds {entry!r}, which is neither a parameter's name nor a pair of them")
    return tuple(pairs)


def require_once(arguments: Mapping[str, Iterable[str | None]]) -> None:
    """Refuse a name that is given twice (ValueError).

    Args:
        arguments: argument to the names that it holds; None is no name.
    """
    places: dict[str, str] = {}
    for argument, names in arguments.items():
        for name in filter(None, names):
            if name in places:
                where = f"twice in {argument}" if places[name] == argument else f"in {places[name]} and in {argument}"
                raise ValueError(f"{name!r} is named {where}: name it once")
            places[name] = argument
