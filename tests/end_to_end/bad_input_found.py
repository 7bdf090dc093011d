"""Bad input: corpora, models, tokenizers and checkpoints."""

from __future__ import annotations

import gzip
import json
import struct

from tests.end_to_end.bad_input import Case, both, put, remove, swap
from tests.unit.launch_world import safetensors

BUILT_IN = "no longer built in; run `python -m examples.miniature` and copy the paths from sweeps/miniature.toml"

FILES = [
    Case(
        "corpus",
        "no such file",
        "x.toml: data.files: 'corpus.jsonl' names no file; it was looked for as {here}/corpus.jsonl",
        remove("corpus.jsonl"),
    ),
    Case(
        "corpus",
        "of a kind that is not read",
        "x.csv: allowed are .jsonl, .parquet, .txt, also .gz and .zst",
        both(put("x.csv", "a"), swap("corpus.jsonl", "x.csv")),
    ),
    Case(
        "corpus",
        "empty",
        "x.toml: data.files: {here}/corpus.jsonl: empty; there is nothing to read",
        put("corpus.jsonl", ""),
        error="InputError",
    ),
    Case(
        "corpus",
        "not JSON",
        "its first record is not JSON: 'Laba diena.'; a .jsonl has an object a line",
        put("corpus.jsonl", "Laba diena.\n"),
        error="InputError",
    ),
    Case(
        "corpus",
        "a list",
        "its first record is list, not an object; a .jsonl has one a line",
        put("corpus.jsonl", '["Laba"]\n'),
        error="InputError",
    ),
    Case(
        "corpus",
        "not UTF-8",
        "not UTF-8: byte 0xe8 in its first record",
        put("corpus.jsonl", b'{"text": "\xe8"}\n'),
        error="InputError",
    ),
    Case(
        "corpus",
        "no such column",
        "data.text_column = 'text': {here}/corpus.jsonl has no such column; did you mean 'txt'?",
        put("corpus.jsonl", '{"txt": "Laba"}\n'),
        error="InputError",
    ),
    Case(
        "corpus",
        "half compressed",
        "the compressed file is damaged or truncated",
        both(put("c.jsonl.gz", gzip.compress(b'{"text": "Laba"}\n' * 99)[:25]), swap("corpus.jsonl", "c.jsonl.gz")),
        error="InputError",
    ),
    Case(
        "corpus",
        "no hub id",
        "data.source = 'CulturaX': allowed are a hub id (owner/name), \"files\"",
        swap('source = "files"\nfiles = ["corpus.jsonl"]', 'source = "CulturaX"'),
    ),
    Case(
        "corpus",
        "not fetched",
        "data.source = 'a/b': not in the cache",
        swap('source = "files"\nfiles = ["corpus.jsonl"]', 'source = "a/b"'),
        error="InputError",
    ),
    Case(
        "Fisher",
        "questions that are none",
        "x.toml: fisher.files: {here}/questions.jsonl: its first record is not JSON",
        put("questions.jsonl", "?"),
        error="InputError",
    ),
    Case(
        "Fisher",
        "gold labels drawn twice",
        'fisher.samples = 2: only with fisher.labels = "sampled"',
        swap("[evaluate]", "samples = 2\n[evaluate]"),
    ),
    Case(
        "model",
        "no such folder",
        "x.toml: model.path = 'nowhere': no such folder, and not a hub id",
        swap('"model"', '"nowhere"'),
    ),
    Case("model", "not fetched", "model.path = 'a/b': not in the cache", swap('"model"', '"a/b"'), error="InputError"),
    Case(
        "model",
        "no config.json",
        "x.toml: model.path: {here}/model: no config.json, so not a Hugging Face model",
        remove("model/config.json"),
        error="InputError",
    ),
    Case(
        "model",
        "half a config.json",
        "{here}/model/config.json: corrupt or not written by hpc-ewc",
        put("model/config.json", "{"),
        error="InputError",
    ),
    Case(
        "model",
        "of another family",
        "model_type is 'llama'; allowed are gemma2, gemma3_text",
        put("model/config.json", '{"model_type": "llama"}'),
        error="InputError",
    ),
    Case(
        "model",
        "with images",
        "of a Gemma 3 with images, export the text model first",
        put("model/config.json", '{"model_type": "gemma3"}'),
        error="InputError",
    ),
    Case(
        "model",
        "no weights",
        "no *.safetensors; an incomplete export, or another format",
        remove("model/model.safetensors"),
        error="InputError",
    ),
    Case(
        "model",
        "weights cut off",
        "Error while deserializing header: incomplete metadata, file not fully covered; copy or fetch it again",
        put("model/model.safetensors", safetensors(4, data=5)),
        error="InputError",
    ),
    Case(
        "model",
        "weights that are none",
        "not a complete safetensors file (10 bytes): ",
        put("model/model.safetensors", struct.pack("<Q", 2) + b"[]"),
        error="InputError",
    ),
    Case(
        "model",
        "a shard is missing",
        "1 of 1 weight files missing, such as a.safetensors; an incomplete export or copy",
        put("model/model.safetensors.index.json", '{"weight_map": {"a": "a.safetensors"}}'),
        error="InputError",
    ),
    Case(
        "model",
        "an index of nothing",
        "not an index of weight files: no 'weight_map'",
        put("model/model.safetensors.index.json", "{}"),
        error="InputError",
    ),
    Case(
        "tokenizer",
        "none",
        "no tokenizer.json or tokenizer.model; copy the base model's tokenizer into it",
        remove("model/tokenizer.json"),
        error="InputError",
    ),
    Case(
        "tokenizer",
        "of another model",
        "its tokenizer has 9 tokens, the model embeds 4: the files of two different models",
        put("model/tokenizer.json", json.dumps({"model": {"vocab": {str(i): i for i in range(9)}}})),
        "evaluate model",
        error="InputError",
    ),
    Case(
        "tokenizer",
        "that is none",
        "not a tokenizer as save_pretrained writes it; copy the base model's tokenizer",
        put("model/tokenizer.json", '{"added_tokens": [{"content": "x"}]}'),
        "evaluate model",
        error="InputError",
    ),
]


def export(**facts: object) -> str:
    known = {
        "run": "strength=1-abc",
        "step": 20,
        "fraction": 1.0,
        "train_key": "k",
        "model_hash": "m",
        "base_hash": "b",
    }
    return json.dumps(known | facts)


CHECKPOINTS = [
    Case(
        "checkpoint",
        "no such folder",
        "{here}/nowhere: no such folder",
        command="evaluate ./nowhere",
        error="InputError",
    ),
    Case(
        "checkpoint",
        "an export without its last file",
        "no hpc_ewc.json, which is written last: incomplete export; resubmit its run",
        lambda here: ((here / "exports").mkdir(), (here / "model").rename(here / "exports" / "00000020")),
        "evaluate exports/00000020",
        error="InputError",
    ),
    Case(
        "checkpoint",
        "an export that says nothing",
        "hpc_ewc.json: lacks step, fraction, train_key, model_hash, base_hash; corrupt or not written by",
        put("model/hpc_ewc.json", '{"run": "x"}'),
        "evaluate model",
        error="InputError",
    ),
    Case(
        "checkpoint",
        "an export that leaves its folder",
        "run = '../../x': not a name that submit gives; not written by hpc-ewc",
        put("model/hpc_ewc.json", export(run="../../x")),
        "evaluate model",
        error="InputError",
    ),
    Case(
        "checkpoint",
        "an export of no time",
        "lacks fraction; corrupt or not written by hpc-ewc",
        put("model/hpc_ewc.json", export(fraction="half")),
        "evaluate model",
        error="InputError",
    ),
    Case(
        "checkpoint",
        "the miniature by its old name",
        f"miniature: {BUILT_IN}",
        command="evaluate model miniature",
        error="InputError",
    ),
    Case(
        "experiment",
        "the miniature's old name as model",
        f"model.path = 'miniature': {BUILT_IN}",
        swap('path = "model"', 'path = "miniature"'),
    ),
    Case(
        "experiment",
        "the miniature's old name as corpus",
        f"data.source = 'miniature': {BUILT_IN}",
        swap('source = "files"\nfiles = ["corpus.jsonl"]', 'source = "miniature"'),
    ),
    Case(
        "experiment",
        "the miniature's old name as the Fisher's source",
        f"fisher.source = 'miniature': {BUILT_IN}",
        swap('source = "files"\nfiles = ["questions.jsonl"]', 'source = "miniature"'),
    ),
]
