"""The questions that checkpoints are asked. Imports no torch.

A cell is one task in one language, such as `arc_easy.lt`, `mmlu.lt.native` or `ppl_heldout.en`; its record and its
samples are the unit that is computed, skipped or computed again. `evaluate/` runs cells; `launch/` deals them to jobs;
`report/` reads what they measured.

tasks     the table: data, metric, chance, cost
cells     which of them an experiment asks, in which language
dealing   what each costs there, and which job gets which
identity  what a measurement is called
recorded  which are there, which are missing
"""

from __future__ import annotations

from hpc_ewc.suites.cells import UNDETERMINED, Cell, expand_suites
from hpc_ewc.suites.dealing import costed, deal
from hpc_ewc.suites.identity import cell_key, data_hash, hub_commit
from hpc_ewc.suites.recorded import exported_weights, missing, recorded
from hpc_ewc.suites.tasks import FLORES_CODES, JUDGED, TASKS

__all__ = [
    "FLORES_CODES",
    "JUDGED",
    "TASKS",
    "UNDETERMINED",
    "Cell",
    "cell_key",
    "costed",
    "data_hash",
    "deal",
    "expand_suites",
    "exported_weights",
    "hub_commit",
    "missing",
    "recorded",
]
