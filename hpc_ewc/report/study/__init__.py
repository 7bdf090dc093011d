"""Reads records and the files beside them into a study of runs and columns."""
