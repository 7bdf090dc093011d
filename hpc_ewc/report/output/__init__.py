"""The report in each medium: terminal, Markdown, LaTeX, HTML, CSV and JSON, and its manifest."""
