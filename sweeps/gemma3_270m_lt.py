"""Prepare the inputs of `sweeps/gemma3-270m-lt.toml`: a real pretrained Gemma, real benchmark rows and real texts.

    python sweeps/gemma3_270m_lt.py [--shared ../shared] [--out data/gemma3-270m-lt]

The script reads a folder of real texts and benchmark rows (its SOURCES.md has the licences; the folder is not part of
this repository). It chooses rows by their hash, so the choice is the same everywhere, and writes:

    OUT/model/                       Gemma 3 270M, by the folder's own tools/real_model.py
    OUT/fisher/mmlu.jsonl            rows from one half of each MMLU subject, for the Fisher
    OUT/questions/en/…               rows from the other half, and from the other benchmarks; ROWS has the numbers
    OUT/tasks/exams_lt.yaml          Lithuanian school examinations, for lm-eval, in ARC's form
    OUT/text/{news,flores}.{en,lt}.jsonl   parallel texts, not used for training
    OUT/text/statutes.lt.jsonl       beginnings of held-out statutes
    OUT/text/statutes_train.jsonl    the other statutes, for training

Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hpc_ewc import records
from hpc_ewc.evaluate.task_files import core_tasks

Row = dict[str, Any]

ROWS = {"arc_easy": 120, "belebele": 30, "hellaswag": 40, "mmlu": 2, "truthfulqa": 8, "winogrande": 100, "exams": 80}
"""Rows of each benchmark (for MMLU: of each subject), as many as two CPU cores score in ten minutes. A question of
TruthfulQA takes 2,000 tokens (seven answers, each after six worked examples). GSM8K is left out, because a base model
of this size solves none of it."""
FISHER_ROWS = 2
"""Rows for the Fisher from each of MMLU's 57 subjects."""
TEXTS = {"ntrex_news": ("news", 8), "sib200_flores": ("flores", 80)}
HELDOUT_STATUTES, HELDOUT_CHARACTERS = 16, 1500
"""Number of held-out statutes, and characters of each that are scored: a whole statute has 10,000 tokens."""
BENCHMARKS = {
    "arc_easy": ("arc_easy_validation", "test"),
    "belebele": ("belebele_test", "test"),
    "hellaswag": ("hellaswag_validation", "validation"),
    "truthfulqa": ("truthfulqa_validation", "validation"),
    "winogrande": ("winogrande_validation", "validation"),
}
"""File and scored split of each task."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the missing files of OUT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder of the real texts and rows")
    parser.add_argument("--out", type=Path, default=Path("data/gemma3-270m-lt"))
    arguments = parser.parse_args(argv)
    data, out = arguments.shared / "data", arguments.out.absolute()
    if not (data / "SOURCES.md").is_file():
        sys.stderr.write(f"{data} has no SOURCES.md; set --shared to the folder of real texts and benchmark rows\n")
        return 2
    write_questions(data, out)
    write_texts(data, out / "text")
    if not (out / "model" / "model.safetensors").is_file():
        subprocess.run(
            [sys.executable, str(arguments.shared / "tools" / "real_model.py"), str(out / "model")], check=True
        )
    sys.stderr.write(f"{out} is complete\n")
    return 0


# ---------------------------------------------------------------------------------------------- rows


def write_questions(data: Path, out: Path) -> None:
    """Write the English benchmarks, the Fisher's rows from one half of MMLU, and EXAMS in Lithuanian."""
    for task, (file, split) in BENCHMARKS.items():
        rows = chosen(read(data / "en" / f"{file}.jsonl"), ROWS[task])
        write(out / "questions" / "en" / task / f"{split}.jsonl", rows)
    fisher: list[Row] = []
    for subject, rows in by_subject(read(data / "en" / "mmlu_test.jsonl")).items():
        ordered = chosen(rows, len(rows))
        half = len(ordered) // 2
        fisher += ordered[:half][:FISHER_ROWS]
        write(out / "questions" / "en" / "mmlu" / "test" / f"{subject}.jsonl", ordered[half:][: ROWS["mmlu"]])
    write(out / "fisher" / "mmlu.jsonl", fisher)
    exams = out / "questions" / "lt" / "exams" / "test.jsonl"
    write(exams, chosen(read(data / "lt" / "exams_lt_test.jsonl"), ROWS["exams"]))
    records.write_text(out / "tasks" / "exams_lt.yaml", exams_task(exams))


def exams_task(rows: Path) -> str:
    """Return a task file of lm-eval: its ARC-Easy with other rows. Values are JSON, which is valid YAML."""
    function = "!function hpc_ewc.evaluate.rows.local_rows"
    facts = {"include": str(core_tasks() / "arc" / "arc_easy.yaml"), "task": "exams_lt", "tag": []}
    facts |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"files": {"test": str(rows)}}}
    facts |= {"training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": None}
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    return "\n".join([*lines, f"custom_dataset: {function}"]) + "\n"


def by_subject(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row["subject"]].append(row)
    return dict(sorted(found.items()))


# ---------------------------------------------------------------------------------------------- texts


def write_texts(data: Path, out: Path) -> None:
    """Write parallel texts (the same documents in both languages), and statutes for training and held-out ones."""
    statutes = read(data / "lt_text" / "statutes_train.jsonl")
    heldout = chosen(statutes, HELDOUT_STATUTES)
    write(out / "statutes.lt.jsonl", [{"text": row["text"][:HELDOUT_CHARACTERS]} for row in heldout])
    write(out / "statutes_train.jsonl", [row for row in statutes if row not in heldout])
    for file, (name, count) in TEXTS.items():
        sides = {language: read(data / f"{language}_text" / f"{file}_{language}.jsonl") for language in ("en", "lt")}
        kept = chosen([{"place": place, "text": row["text"]} for place, row in enumerate(sides["en"])], count)
        places = sorted(row["place"] for row in kept)
        for language, rows in sides.items():
            write(out / f"{name}.{language}.jsonl", [{"text": rows[place]["text"]} for place in places])


# ---------------------------------------------------------------------------------------------- files


def read(path: Path) -> list[Row]:
    """Read JSON lines. Only a line feed ends a line, because some texts contain U+2028."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def chosen(rows: Sequence[Row], count: int) -> list[Row]:
    """Return the `count` rows with the smallest hashes; the choice does not depend on the order in the file."""
    return sorted(rows, key=lambda row: hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest())[:count]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as JSON lines; the same rows give the same bytes."""
    records.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
