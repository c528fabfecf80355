"""The positional arguments of commands, with their names in --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import tyro

Experiment: TypeAlias = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPERIMENT")]
Name: TypeAlias = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
Experiments: TypeAlias = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EXPERIMENT ...")]
Directories: TypeAlias = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
ExperimentsOrRuns: TypeAlias = Annotated[
    tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EXPERIMENT ... | RUN ...")
]
