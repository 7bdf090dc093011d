"""The output of a dry run: the graph, its forecast, and on Slurm the batch scripts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpc_ewc.launch.forecast.lines import Forecast
from hpc_ewc.launch.inputs.source_files import fetch_command
from hpc_ewc.launch.plan.graph import Node, elements
from hpc_ewc.launch.plan.missing_inputs import describe_missing_inputs
from hpc_ewc.launch.plan.plan import Plan
from hpc_ewc.launch.show.rows import STAGES
from hpc_ewc.launch.show.table import columns
from hpc_ewc.launch.submit import code
from hpc_ewc.rundir import script_file

if TYPE_CHECKING:
    from hpc_ewc.launch.submit.slurm_plan import Submission

TOKEN = "TOKEN"  # noqa: S105 - stands for the token that a submission would get


def render(plan: Plan, *, all_scripts: bool) -> str:
    """Return the graph with one line per stage and run (done, missing, shared), then the forecast.

    Args:
        plan: the plan of what would be submitted.
        all_scripts: on Slurm, every batch script, not one per stage.
    """
    users = plan.graph.users()
    table = [("stage", "run", "state", "jobs", "shared by", "each")]
    for name, node in plan.graph.nodes.items():
        found, shared = plan.found[name], len(users[name])
        state = "done" if found.done else "failed, will run again" if found.failed else "missing"
        if node.stage == "evaluate" and 0 < len(found.missing) < len(node.expected):
            state = f"{len(found.missing)} of {len(node.expected)} cells missing"
        jobs = "" if found.done else str(plan.jobs[name])
        table.append((node.stage, node.run, state, jobs, f"{shared} stages" if shared > 1 else "", _resources(node)))
    stages = []
    for stage in STAGES:
        done = [plan.found[node.id].done for node in plan.graph.of(stage)]
        stages += [f"{stage} {sum(done)} of {len(done)} done"] if done else []
    lines = [columns(table), f"{', '.join(stages)}; jobs missing: {sum(plan.jobs.values())}"]
    lines += describe_missing_inputs(plan.missing_inputs, fetch_command(plan.request.label))
    lines += Forecast(plan, plan.request.model_config).lines()
    lines += [f"runs: {plan.graph.root.root}; tables: {plan.out}. A dry run: nothing was written"]
    if plan.profile.executor == "slurm":
        lines += render_scripts(plan, every=all_scripts)
    return "\n".join(lines) + "\n"


def _resources(node: Node) -> str:
    """Return the resources of one job in words."""
    resources = node.resources
    parts = [f"{resources.nodes} nodes" if resources.nodes > 1 else "", f"{resources.cpus_per_task} cpus"]
    parts += [f"{resources.gpus_per_node} gpus" if resources.gpus_per_node else ""]
    return " ".join(part for part in parts if part)


def render_scripts(plan: Plan, *, every: bool) -> Iterator[str]:
    """Yield the batch scripts as they would be submitted, each under its path.

    The ids that sbatch would give and the token of the submission appear as words: `<train/strength=0-…>`, TOKEN.
    """
    submissions = list(_submissions(plan))
    ids: dict[str, list[str]] = {}
    for submission in submissions:
        for task in submission.tasks:
            ids.setdefault(task.node.id, []).append(f"<{submission.name}>")
    shown: set[str] = set()
    for submission in submissions:
        if every or submission.node.stage not in shown:
            script = submission.script(TOKEN, submission.dependency(ids))
            yield f"\n===== {script_file(script.folder)}\n{script.render()}"
        shown.add(submission.node.stage)
    if len(shown) < len(submissions) and not every:
        yield "(one script per stage; --scripts shows all)"


def _submissions(plan: Plan) -> Iterator[Submission]:
    """Yield the calls of sbatch, stage by stage."""
    from hpc_ewc.launch.submit.slurm_plan import Submission, array_tasks, submission_groups

    package, size = plan.graph.root.code(code.code_hash()), plan.profile.slurm.max_array_size
    for nodes in sorted(submission_groups(plan.graph), key=lambda nodes: STAGES.index(nodes[0].stage)):
        missing = [node for node in nodes if not plan.found[node.id].done]
        listed = [(node, elements(node, plan.found[node.id].missing or None)) for node in missing]
        tasks = [task for node, wanted in listed for task in array_tasks(node, wanted, plan.profile)]
        yield from (Submission(plan, tasks[i : i + size], package) for i in range(0, len(tasks), size))
