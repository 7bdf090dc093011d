"""Records become tables and figures: `python -m hpc_ewc.report runs/NAME`.

collect      finds records and reads them; lists what cannot be taken
stages       what training and Fisher left beside them; which cells are missing, and why
study        which runs and columns there are, and what may stand beside what
samples      scores of single documents, and who is paired with whom
statistics   tests, intervals, corrections: arrays in, numbers out
columns      one column: its documents resampled, its runs paired; pairs: two runs of it
differences  each run against its base, by column and over tasks
tables       all numbers laid out, once, for every medium
terminal, markdown, latex, page, data    the media
figures      the same numbers drawn
"""

from hpc_ewc.report.collect import load_records
from hpc_ewc.report.compare import Comparison, compare

__all__ = ["Comparison", "compare", "load_records"]
