"""Options that ``velocity run`` and ``velocity replay`` share, each described once."""

from pathlib import Path
from typing import Annotated, Final

import typer

from velocity.pipelines.job import LAST_GENERATION

ON_FLINK: Final = "With --runner flink"

BeamOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- OPTIONS", help="For Beam, as they are.", show_default=False),
]
Sqlite = Annotated[
    Path | None, typer.Option(help="Documents into this file, not into the job's sinks.")
]
Generation = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=LAST_GENERATION,
        help="Of the job's logic, instead of the job's own: documents of a later one replace"
        " those of an earlier one, also if they count fewer events.",
    ),
]
FlinkMaster = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT|local",
        help="Flink's REST interface; local is a Flink inside this run, for trying out.",
        show_default="the stack's",
        rich_help_panel=ON_FLINK,
    ),
]
Parallelism = Annotated[
    int | None,
    typer.Option(
        help="Subtasks of each step, 1 to 128.", show_default="2", rich_help_panel=ON_FLINK
    ),
]
