"""The names of experiments on a command line."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import tyro

Name: TypeAlias = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
Names: TypeAlias = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EXPERIMENT ...")]
