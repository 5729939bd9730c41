"""What a pipeline may know of its runner's panes; imported without Beam."""

from typing import Final

PANES_TOLD: Final = "velocity_panes_told"
"""An experiment among the pipeline's options: its runner says of each pane whether it is its window's first,
or last. Flink does; Prism calls several the first."""
