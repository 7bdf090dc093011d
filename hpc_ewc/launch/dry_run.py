"""What a submit would do, shown and not done: the graph, what it costs, and on Slurm the batch scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ewc.launch import code
from hpc_ewc.launch.graph import Node, elements, gpu_hours
from hpc_ewc.launch.view import STAGES, columns

if TYPE_CHECKING:
    from hpc_ewc.launch.slurm_plan import Bundle
    from hpc_ewc.launch.submit import Plan

PLACE = "TOKEN"
"""In place of a submission's token."""
FILES_A_JOB = 14
"""submitit's, the launcher's, and what ranks print; folders counted."""
SAMPLES_BYTES = 400_000
"""Of one cell's samples, compressed, to within a factor of ten."""
COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Footprint:
    """What a graph leaves on the disk when all is done."""

    size: float
    """Bytes; nan where the size of a model is not known yet."""
    files: int


def render(plan: Plan, scripts: bool) -> str:
    """The graph, a line a stage and run: what is done, what is missing, and how many runs share it; then the cost.

    Args:
        plan: what would be submitted.
        scripts: on Slurm, every batch script, not one of each stage.
    """
    users = plan.graph.users()
    table = [("stage", "run", "state", "jobs", "shared by", "each")]
    for name, node in plan.graph.nodes.items():
        found, shared = plan.found[name], len(users[name])
        state = "done" if found.done else "failed, will run again" if found.failed else "missing"
        if node.stage == "evaluate" and 0 < len(found.missing) < len(node.expected):
            state = f"{len(found.missing)} of {len(node.expected)} cells missing"
        jobs = "" if found.done else str(plan.jobs[name])
        table.append((node.stage, node.run, state, jobs, f"{shared} stages" if shared > 1 else "", _asked(node)))
    stages = []
    for stage in STAGES:
        done = [plan.found[node.id].done for node in plan.graph.of(stage)]
        stages += [f"{stage} {sum(done)} of {len(done)} done"] if done else []
    lines = [columns(table), f"{', '.join(stages)}; jobs missing: {sum(plan.jobs.values())}"]
    hours = gpu_hours(plan.graph, plan.jobs)
    lines += [f"up to {hours:.1f} GPU-hours"] if hours else []
    lines += [f"disk: {describe(estimate(plan))}"] if plan.jobs else []
    lines += [f"runs: {plan.graph.root.root}; tables: {plan.out}. A dry run: nothing was written"]
    if plan.profile.executor == "slurm":
        lines += render_scripts(plan, scripts)
    return "\n".join(lines) + "\n"


def _asked(node: Node) -> str:
    """What one job asks for."""
    resources = node.resources
    parts = [f"{resources.nodes} nodes" if resources.nodes > 1 else "", f"{resources.cpus_per_task} cpus"]
    parts += [f"{resources.gpus_per_node} gpus" if resources.gpus_per_node else ""]
    return " ".join(part for part in parts if part)


# ---------------------------------------------------------------------------------------------- scripts


def render_scripts(plan: Plan, every: bool) -> Iterator[str]:
    """The batch scripts as they would be submitted, each under where it would lie. Ids that sbatch gives, and the
    token of the submission, stand as words: `<train/strength=0-…>`, TOKEN.
    """
    from hpc_ewc.launch.slurm_plan import dependency, shared_run
    from hpc_ewc.launch.slurm_script import build_script

    package = plan.graph.root.code(code.code_hash())
    submissions = list(_submissions(plan))
    ids: dict[str, list[str]] = {}
    for chunk in submissions:
        name = "/".join(filter(None, (chunk[0].node.stage, shared_run(chunk))))
        for bundle in chunk:
            ids.setdefault(bundle.node.id, []).append(f"<{name}>")
    shown: set[str] = set()
    for chunk in submissions:
        node = chunk[0].node
        if node.stage in shown and not every:
            continue
        shown.add(node.stage)
        script = build_script(
            root=plan.graph.root,
            stage=node.stage,
            run=shared_run(chunk),
            token=PLACE,
            resources=node.resources,
            profile=plan.profile,
            code=package,
            array=len(chunk) if len(chunk) > 1 else None,
            dependency=dependency(node, plan.graph, plan.found, ids),
        )
        yield f"\n===== {script.folder / 'submission.sh'}\n{script.render()}"
    if len(shown) < len(submissions) and not every:
        yield "(one script of each stage; --scripts shows all)"


def _submissions(plan: Plan) -> Iterator[list[Bundle]]:
    """What each call of sbatch would be given, stage by stage."""
    from hpc_ewc.launch.slurm_plan import arrays, bundles

    size = plan.profile.slurm.max_array_size
    for nodes in sorted(arrays(plan.graph), key=lambda nodes: STAGES.index(nodes[0].stage)):
        wanted = [(node, plan.found[node.id]) for node in nodes if not plan.found[node.id].done]
        missing = [(node, elements(node, there.missing or None)) for node, there in wanted]
        waiting = [bundle for node, listed in missing for bundle in bundles(node, listed, plan.profile)]
        yield from (waiting[i : i + size] for i in range(0, len(waiting), size))


# ---------------------------------------------------------------------------------------------- disk


def describe(footprint: Footprint) -> str:
    """`about 123 GB in 4,500 files when all is done`."""
    size = f"about {footprint.size / 1e9:,.1f} GB" if math.isfinite(footprint.size) else "of unknown size"
    return f"{size} in {footprint.files:,} files (inodes) when all is done"


def estimate(plan: Plan) -> Footprint:
    """What the missing stages will write, and keep."""
    parameters: dict[str, float] = {}
    size, files = 0.0, 0
    for name, jobs in plan.jobs.items():
        node = plan.graph.nodes[name]
        model = str(node.inputs.get("model", ""))
        if node.stage in ("fisher", "train") and model not in parameters:
            parameters[model] = count_parameters(Path(model))
        own = _footprint(node, parameters.get(model, 0.0))
        size, files = size + own.size, files + own.files + jobs * FILES_A_JOB
    return Footprint(size, files)


def _footprint(node: Node, parameters: float) -> Footprint:
    train, ranks = node.experiment.train, node.resources.nodes * node.resources.nproc_per_node
    match node.stage:
        case "tokens":
            texts = sum(Path(path).stat().st_size for path in node.inputs["files"] if Path(path).is_file())
            return Footprint(texts * node.experiment.data.fraction, 3 * len(node.inputs["files"]) + 5)
        case "fisher":  # F and the anchor
            stored = COMPUTE_BYTES[node.experiment.fisher.dtype] + 4
            return Footprint(parameters * stored, 2 * ranks + 6)
        case "train":  # exports as the model's dtype; checkpoints of fp32 masters and two moments of Adam
            exports = len(train.export_at) * COMPUTE_BYTES[node.experiment.model.dtype]
            checkpoints = 12 * (train.keep_checkpoints + 1)
            return Footprint(
                parameters * (exports + checkpoints),
                8 * len(train.export_at) + (ranks + 3) * train.keep_checkpoints + 6,
            )
        case "evaluate":
            return Footprint(SAMPLES_BYTES * len(node.expected), 2 * len(node.expected) + 6)
    return Footprint(0.0, 0)


def count_parameters(folder: Path) -> float:
    """Numbers in a model's safetensors, by their headers; nan where there are none yet."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000)))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return float(total) if total else math.nan
