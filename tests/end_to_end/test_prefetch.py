"""`hpc-ewc prefetch` against a hub on this machine: the real client, refusals, interruptions, and then no network."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hpc_ewc import records
from hpc_ewc.launch.fetch.prefetch import worker_python
from hpc_ewc.launch.profile.reading import build_profile
from tests.conftest import use_hub_cache
from tests.end_to_end.fake_hub import FakeHub, Repo, serve

EXPERIMENT = """
[model]
path = "org/tiny-gemma"
dtype = "float32"
[data]
source = "org/corpus"
subset = "lt"
heldout_documents = 2
[fisher]
source = "org/questions"
subset = "all"
split = "validation"
prompt = "text"
[evaluate]
suites = ["arc_easy.en", "ppl_truthfulqa.en"]
shots = {}
[grid]
ewc.strength = [0, 1e6]
"""
CARD = """---
configs:
- config_name: ARC-Easy
  data_files:
  - split: train
    path: ARC-Easy/train-*
  - split: validation
    path: ARC-Easy/validation-*
  - split: test
    path: ARC-Easy/test-*
- config_name: ARC-Challenge
  data_files:
  - split: test
    path: ARC-Challenge/test-*
---
"""


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def local_rows(world: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (world / "questions" / "en" / name).read_text().splitlines()]


@pytest.fixture
def hub(miniature: Path) -> Iterator[FakeHub]:
    """The miniature under other names, as if it lay on the hub."""
    model = {path.name: path.read_bytes() for path in sorted((miniature / "model").iterdir()) if path.is_file()}
    texts = [{"text": f"Laba diena numeris {i}."} for i in range(20)]
    questions = [{"question": f"What is {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(4)]
    with serve() as fake:
        fake.repos["models", "org/tiny-gemma"] = Repo(
            {**model, "chat_template.jinja": b"{{ messages }}", "original/consolidated.pth": b"x" * 1000}
        )
        corpus = {f"lt/part-{i}.jsonl": lines(texts[10 * i : 10 * i + 10]) for i in range(2)}
        fake.repos["datasets", "org/corpus"] = Repo({**corpus, "en/part-0.jsonl": lines(texts), "README.md": b"#"})
        fake.repos["datasets", "org/questions"] = Repo(
            {"all/validation-0.jsonl": lines(questions), "all/test-0.jsonl": b""}
        )
        splits = {split: parquet(local_rows(miniature, f"arc_easy/{split}.jsonl")[:12]) for split in ("train", "test")}
        splits["validation"] = splits["train"]
        arc = {f"ARC-Easy/{split}-00000-of-00001.parquet": data for split, data in splits.items()}
        arc["ARC-Challenge/test-00000-of-00001.parquet"] = splits["test"]
        fake.repos["datasets", "allenai/ai2_arc"] = Repo({**arc, "README.md": CARD.encode()})
        rows = parquet(local_rows(miniature, "truthfulqa/validation.jsonl")[:8])
        card = CARD.replace("ARC-Easy", "multiple_choice").encode()
        truthful = {"multiple_choice/validation-00000-of-00001.parquet": rows}
        for split in ("train", "test"):
            truthful[f"multiple_choice/{split}-00000-of-00001.parquet"] = rows
        truthful["ARC-Challenge/test-0.parquet"] = rows
        fake.repos["datasets", "truthfulqa/truthful_qa"] = Repo({**truthful, "README.md": card}, gated=True)
        yield fake


class Login:
    """A login node: a home of its own, the hub, and the commands."""

    def __init__(self, folder: Path, hub: FakeHub, repository: Path) -> None:
        self.folder = folder
        self.sweep = folder / "small.toml"
        self.sweep.write_text(EXPERIMENT)
        keep = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
        self.env = {name: os.environ[name] for name in keep if name in os.environ}
        self.env |= {"HF_HOME": str(folder / "hf"), "HPC_EWC_CACHE": str(folder / "cache"), "HF_ENDPOINT": hub.url}
        self.env |= {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpc_ewc", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.env | env, capture_output=True, text=True)

    def prefetch(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("prefetch", "small.toml", *arguments, **env)


@pytest.fixture
def login(tmp_path: Path, hub: FakeHub, repository: Path) -> Login:
    return Login(tmp_path, hub, repository)


@pytest.mark.timeout(900)
@pytest.mark.slow  # six processes that import everything
def test_everything_is_fetched_once_loads_offline_and_is_scored_without_a_network(login: Login, hub: FakeHub) -> None:
    refused = login.prefetch()
    assert refused.returncode == 1, refused.stderr
    assert "- truthfulqa/truthful_qa: gated: accept its terms on the hub, at " in refused.stderr
    assert "huggingface.co/datasets/truthfulqa/truthful_qa, then set HF_TOKEN" in refused.stderr
    fetched = dict(hub.sent)
    assert "original/consolidated.pth" not in fetched  # another format of the same weights
    assert "chat_template.jinja" in fetched
    assert not any(name.startswith("en/") or "test-0.jsonl" in name or "Challenge" in name for name in fetched)
    assert {name for name in fetched if name.startswith("lt/")} == {"lt/part-0.jsonl", "lt/part-1.jsonl"}

    hub.allowed.add("hf_secret")
    done = login.prefetch(HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert "everything is there, and loads offline" in done.stderr
    for what in (
        "model org/tiny-gemma: gemma2",
        "corpus org/corpus: 2 files",
        "Fisher questions",
        "arc_easy.en: 12 rows",
    ):
        assert f"ok  {what}" in done.stderr
    again = {name: size for name, size in hub.sent.items() if size != fetched.get(name)}
    assert all(name.startswith("multiple_choice") or name == "README.md" for name in again), again

    hub.asked.clear()
    assert login.prefetch().returncode == 0
    assert hub.asked == []  # what is there is not even asked for

    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    dry = login.run("submit", "small.toml", "--dry-run", **nowhere)
    assert dry.returncode == 0, dry.stderr
    asked = ("--suites", "arc_easy.en", "--shots", "arc_easy=1", "--limit", "6", "--dtype", "float32")
    scored = login.run("evaluate", "org/tiny-gemma", *asked, **nowhere)
    assert scored.returncode == 0, scored.stderr
    (path,) = login.folder.glob("runs/checkpoints/evaluate/tiny-gemma-*/00000000/arc_easy.en.json")
    record = records.read_json(path)
    assert (record["status"], record["shots"], record["results"][0]["n"]) == ("ok", 1, 6)
    assert record["data_hash"] == f"allenai/ai2_arc@{'c0ffee00' * 5}"


CACHES = {
    "the home": ({}, ".cache/huggingface/hub"),
    "XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "{here}/xdg"}, "xdg/huggingface/hub"),
    "HF_HOME": ({"HF_HOME": "{here}/hf", "XDG_CACHE_HOME": "{here}/xdg"}, "hf/hub"),
    "~ in HF_HOME": ({"HF_HOME": "~/hf"}, "hf/hub"),
    "a variable in HF_HOME": ({"HF_HOME": "$SCRATCH/hf", "SCRATCH": "{here}/s"}, "s/hf/hub"),
    "HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "{here}/old", "HF_HOME": "{here}/hf"}, "old"),
    "HF_HUB_CACHE": ({"HF_HUB_CACHE": "~/new", "HUGGINGFACE_HUB_CACHE": "{here}/old"}, "new"),
}
FETCH = """
from pathlib import Path
from hpc_ewc import hub
from hpc_ewc.config import ModelConfig
from hpc_ewc.launch.fetch.download import fetch, look_up, model_repository
from hpc_ewc.launch.inputs.resolver import Resolver
repository = model_repository("org/tiny-gemma", None)
look_up(repository, update=False)
assert not repository.error and repository.missing == list(repository.files)
fetch(repository)
assert not repository.error and not repository.missing, repository.error
folder, identity, _ = Resolver("x.toml").model(ModelConfig(path="org/tiny-gemma"))
assert identity == f"org/tiny-gemma@{repository.commit}" and (Path(folder) / "chat_template.jinja").is_file()
print(hub.cache(), folder)
"""


@pytest.mark.parametrize("rule", CACHES)
def test_the_cache_is_where_huggingface_hub_has_it(login: Login, rule: str) -> None:
    settings, place = CACHES[rule]
    del login.env["HF_HOME"]
    login.env |= {name: value.format(here=login.folder) for name, value in settings.items()}
    login.env |= {"HOME": str(login.folder)}
    done = subprocess.run(
        [sys.executable, "-c", FETCH], cwd=login.folder, env=login.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cache, snapshot = done.stdout.split()
    assert Path(cache) == login.folder / place
    assert Path(snapshot).is_relative_to(cache)


@pytest.mark.slow
def test_an_interrupted_corpus_is_not_taken_for_the_whole_and_goes_on(login: Login, hub: FakeHub) -> None:
    del login.env["HF_HOME"]
    login.env["XDG_CACHE_HOME"] = str(login.folder / "xdg")
    login.sweep.write_text(login.sweep.read_text().replace('["arc_easy.en", "ppl_truthfulqa.en"]', '["ppl_heldout"]'))
    hub.cut.add("lt/part-1.jsonl")
    cut = login.prefetch()
    assert cut.returncode == 1
    assert "- org/corpus: " in cut.stderr
    dry = login.run("submit", "small.toml", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "corpus org/corpus\n  fetch them with: hpc-ewc prefetch small.toml" in dry.stdout
    refused = login.run("submit", "small.toml")
    assert refused.returncode == 2
    assert (
        "data.source = 'org/corpus': 1 of 2 files are not in the cache yet, such as lt/part-1.jsonl; continue"
        in refused.stderr
    )
    whole = hub.sent["model.safetensors"], hub.sent["lt/part-0.jsonl"]
    hub.cut.clear()
    assert login.prefetch().returncode == 0
    assert (hub.sent["model.safetensors"], hub.sent["lt/part-0.jsonl"]) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('subset = "lt"', 'subset = "et"'),
            "org/corpus: data.source (et, train): no file of subset 'et', split 'train'; there are README.md, en, lt",
        ),
        (
            ('"org/tiny-gemma"', '"org/nothing"'),
            "org/nothing: no such model on the hub, or a private one: look at https://huggingface.co/org/nothing",
        ),
        (
            ('dtype = "float32"', 'revision = "v9"'),
            "org/tiny-gemma@v9: no such revision: look at https://huggingface.co/org/tiny-gemma/commits/main",
        ),
    ],
)
def test_what_is_not_there_is_told_with_what_there_is(login: Login, change: tuple[str, str], message: str) -> None:
    text = login.sweep.read_text().replace('suites = ["arc_easy.en", "ppl_truthfulqa.en"]', 'suites = ["ppl_heldout"]')
    login.sweep.write_text(text.replace(*change))
    done = login.prefetch()
    assert done.returncode == 1
    assert message in done.stderr


def test_a_token_without_access_is_told_apart_and_never_shown(login: Login, hub: FakeHub) -> None:
    hub.repos["models", "org/tiny-gemma"].gated = True
    login.sweep.write_text(login.sweep.read_text().replace('["arc_easy.en", "ppl_truthfulqa.en"]', '["ppl_heldout"]'))
    done = login.prefetch(HF_TOKEN="hf_other")
    assert done.returncode == 1
    assert "org/tiny-gemma: gated: accept its terms" in done.stderr
    assert "the token that is set here has no access yet" in done.stderr
    assert "hf_other" not in done.stdout + done.stderr


def test_nothing_is_begun_where_it_cannot_end(login: Login) -> None:
    offline = login.prefetch(HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert "HF_HUB_OFFLINE set in this shell: unset it for `hpc-ewc prefetch`" in offline.stderr
    nowhere = login.prefetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert nowhere.returncode == 2
    assert "http://127.0.0.1:9 is out of reach from this machine" in nowhere.stderr
    dry = login.prefetch("--dry-run")
    assert dry.returncode == 0
    assert "nothing was fetched" in dry.stderr
    assert not (login.folder / "hf" / "hub").exists()


def test_as_a_job_it_asks_the_scheduler_without_a_token(login: Login) -> None:
    seen = login.folder / "seen"
    sbatch = login.folder / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\nenv >> {seen}\necho "4711;cluster"\n')
    sbatch.chmod(0o755)
    profile = login.folder / "p.toml"
    cluster = 'executor = "slurm"\n[slurm]\naccount = "gpus"\nsetup = ["module load x"]\n'
    profile.write_text(cluster + '[slurm.stage.tokens]\naccount = "me"\nqos = "long"\n')
    path = {"PATH": f"{sbatch.parent}:{os.environ['PATH']}"}
    done = login.prefetch("--profile", "p.toml", "--as-job", "serial", HF_TOKEN="hf_secret", **path)
    assert (done.returncode, "job 4711 in serial; its output goes to" in done.stderr) == (0, True), done.stderr
    text = seen.read_text()
    for word in (
        "--partition=serial",
        "--account=me",
        "--qos=long",
        "--wrap=module load x",
        "-m hpc_ewc prefetch",
        "small.toml",
    ):
        assert word in text
    assert "hf_secret" not in text and "HF_HOME=" in text
    refused = login.prefetch("--as-job", "serial")
    assert refused.returncode == 2
    assert "is not the profile of a cluster; name one by --profile" in refused.stderr
    sbatch.write_text("#!/bin/sh\necho 'Invalid partition' >&2\nexit 1\n")
    wrong = login.prefetch("--profile", "p.toml", "--as-job", "nowhere", **path)
    assert "SubmitError: --as-job nowhere: sbatch refused (exit 1): Invalid partition" in wrong.stderr


def test_in_a_container_the_heavy_part_runs_in_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPC_EWC_CACHE", str(tmp_path / "cache"))
    use_hub_cache(monkeypatch, tmp_path / "hf")
    table = {"executor": "slurm", "python": "/host/python"}
    assert worker_python(build_profile(table, "p.toml"), "/t") == ["/host/python"]
    box = {"runtime": "singularity", "image": "/x.sif", "binds": ["/scratch"], "python": "python3"}
    command = worker_python(build_profile(table | {"container": box}, "p.toml"), "/t")
    assert (command[:2], command[-2:]) == (["singularity", "exec"], ["/x.sif", "python3"])
    shown = [place for flag, place in itertools.pairwise(command) if flag == "--bind"]
    assert {"/t", f"{tmp_path}/cache", f"{tmp_path}/hf", "/scratch"} <= set(shown)


def test_a_dry_run_needs_no_torch(login: Login) -> None:
    program = (
        "import sys; from hpc_ewc.cli import main; main(['prefetch', 'small.toml', '--dry-run']); print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=login.folder, env=login.env, capture_output=True, text=True
    )
    modules = set(done.stdout.split())
    assert "huggingface_hub" in modules
    assert not modules & {"torch", "transformers", "datasets", "lm_eval"}
