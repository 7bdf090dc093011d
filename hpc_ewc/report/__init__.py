"""Records become tables and figures: `python -m hpc_ewc.report runs/NAME`.

study       reads records, samples and the stages' files into runs and columns
analysis    tests and intervals: the values of each run and its differences to the base, by column and over tasks
tables      all numbers laid out once, for every medium
output      the media: terminal, Markdown, LaTeX, HTML, CSV and JSON
drawing     the figures, from the same numbers
build, comparison    a whole report; two runs compared with each other
"""

from hpc_ewc.report.comparison import Comparison, compare
from hpc_ewc.report.study.collect import load_records

__all__ = ["Comparison", "compare", "load_records"]
