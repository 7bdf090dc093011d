"""Figures from the numbers of a report. Needs matplotlib; imported only where figures are asked for."""
