"""What a submit would do, shown and not done: the graph, what it costs, and on Slurm the batch scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpc_ewc.launch.forecast.predict import Forecast
from hpc_ewc.launch.inputs.source_files import fetch_command
from hpc_ewc.launch.plan.graph import Node, elements
from hpc_ewc.launch.plan.missing_inputs import describe_absent
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.show.rows import STAGES
from hpc_ewc.launch.show.table import columns
from hpc_ewc.launch.submit import code

if TYPE_CHECKING:
    from hpc_ewc.launch.submit.slurm_plan import Bundle

PLACE = "TOKEN"
"""In place of a submission's token."""


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
    lines += describe_absent(plan.absent, fetch_command(plan.request.label))
    lines += Forecast(plan, plan.request.model_config).lines()
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
    from hpc_ewc.launch.slurm.script import build_script
    from hpc_ewc.launch.submit.slurm_plan import dependency, shared_run

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
    from hpc_ewc.launch.submit.slurm_plan import arrays, bundles

    size = plan.profile.slurm.max_array_size
    for nodes in sorted(arrays(plan.graph), key=lambda nodes: STAGES.index(nodes[0].stage)):
        wanted = [(node, plan.found[node.id]) for node in nodes if not plan.found[node.id].done]
        missing = [(node, elements(node, there.missing or None)) for node, there in wanted]
        waiting = [bundle for node, listed in missing for bundle in bundles(node, listed, plan.profile)]
        yield from (waiting[i : i + size] for i in range(0, len(waiting), size))
