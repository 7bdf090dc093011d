"""A small invented world in English and Lithuanian."""
