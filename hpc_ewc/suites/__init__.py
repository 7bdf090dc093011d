"""The evaluation suites: which tasks a checkpoint is evaluated on. Imports no torch.

A cell is one task in one language, such as `arc_easy.lt`, `mmlu.lt.native` or `ppl_heldout.en`. Its record and its
samples are the unit that is computed, skipped or computed again. `evaluate/` runs cells, `launch/` assigns them to
jobs, `report/` reads their records.

tasks       the table of tasks: data, metric, chance, cost
cells       the cells of an experiment
assignment  the cost of each cell, and the assignment of cells to jobs
identity    the key of a measurement
recorded    which cells are recorded, which are missing
"""

from __future__ import annotations

from hpc_ewc.suites.assignment import assign, costed
from hpc_ewc.suites.cells import UNDETERMINED, Cell, expand_suites
from hpc_ewc.suites.identity import cell_key, data_hash, hub_commit
from hpc_ewc.suites.recorded import exported_weights, missing, recorded
from hpc_ewc.suites.tasks import FLORES_CODES, JUDGED, TASKS

__all__ = [
    "FLORES_CODES",
    "JUDGED",
    "TASKS",
    "UNDETERMINED",
    "Cell",
    "assign",
    "cell_key",
    "costed",
    "data_hash",
    "expand_suites",
    "exported_weights",
    "hub_commit",
    "missing",
    "recorded",
]
