"""The numbers of an analysis laid out once, for every medium."""
