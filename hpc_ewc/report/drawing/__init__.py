"""Figures from the numbers of a report. Needs matplotlib; imported only if figures are requested."""
