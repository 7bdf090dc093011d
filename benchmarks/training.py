"""What a training step costs, by part, and what it takes to start, to save, and in place of the HF Trainer.

    python benchmarks/training.py [--size small|gemma2-2b] [--ranks 2] [--parts loss,load,step,trainer] [--out FILE]

On a machine with GPUs the same command measures them (NCCL, bf16, flex_attention); `gemma2-2b` is Gemma 2's size with
random weights, one sequence of 4,096 tokens a rank, and needs one H200 or more. Every figure is of a process of its
own. Times are medians of synchronised steps; what matters are ratios within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "config": {
            "vocab_size": 16000,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 48,
            "query_pre_attn_scalar": 48,
            "sliding_window": 64,
        },
        "tokens": (2, 128),  # sequences a rank, tokens of each
        "loss": (2048, 512, 32000),  # tokens, hidden, vocabulary
        "dtype": "float32",
        "steps": 8,
        "load_layers": 24,
    },
    "gemma2-2b": {
        "config": {
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
        "tokens": (1, 4096),
        "loss": (8192, 2304, 256000),
        "dtype": "bfloat16",
        "steps": 12,
        "load_layers": 26,
    },
}


def main() -> None:
    """Run the parts, each in processes of its own, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parts", default="loss,load,step,trainer")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        name, *rest = arguments.inside.split(":")
        INSIDE[name](SIZES[arguments.size], arguments.folder, *rest)
        return
    out = arguments.out or RESULTS / f"training-{arguments.size}.json"
    with tempfile.TemporaryDirectory() as folder:

        def inside(call: str, ranks: int = 0) -> dict[str, Any]:
            return _inside(call, arguments.size, Path(folder), ranks)

        result: dict[str, Any] = {"benchmark": "training", "size": arguments.size, **SIZES[arguments.size]}
        parts = arguments.parts.split(",")
        if "loss" in parts:
            result["loss"] = measure_loss(inside)
        if "load" in parts:
            inside("checkpoint:load_layers")
            result["load"] = {way: inside(f"load:{way}", arguments.ranks) for way in ("shards", "whole")}
        if "step" in parts:
            result["step"] = {f"strength={s}": inside(f"step:{s}", arguments.ranks) for s in ("0", "1e6")}
        if "trainer" in parts:
            inside("checkpoint")
            ways = {way: inside(f"trainer:{way}", 1 if way == "engine" else 0) for way in ("engine", "hf_trainer")}
            ratio = ways["engine"]["tokens_per_s"] / ways["hf_trainer"]["tokens_per_s"]
            result["trainer"] = ways | {"engine / HF Trainer": round(ratio, 3)}
        result["environment"] = inside("environment") | {"ranks": arguments.ranks}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    print(out)


def _inside(call: str, size: str, folder: Path, ranks: int) -> dict[str, Any]:
    """Run one of INSIDE in a process of its own, or under torchrun; what rank 0 wrote."""
    start = [sys.executable]
    if ranks:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*start, __file__, "--inside", call, "--size", size, "--folder", str(folder)]
    subprocess.run(command, check=True, env=environment)
    return dict(json.loads((folder / "result.json").read_text()))


def report(folder: Path, result: dict[str, Any]) -> None:
    """Hand a result to the process that asked; rank 0 does."""
    if os.environ.get("RANK", "0") == "0":
        (folder / "result.json").write_text(json.dumps(result))


# ---------------------------------------------------------------------------------------------- measuring


def device() -> Any:
    import torch

    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> int:
    """Bytes in use now; the peak is counted from here."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """Most bytes in use since `reset_peak`."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def median_s(function: Callable[[], Any], times: int) -> float:
    """Median of synchronised wall times; one run before is not counted."""
    function()
    seconds = []
    for _ in range(times):
        synchronise()
        started = time.perf_counter()
        function()
        synchronise()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def environment(size: dict[str, Any], folder: Path) -> None:
    """Where the figures were taken."""
    import torch

    from hpc_ewc.train.manifest import versions

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    facts = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}
    report(folder, facts | {"platform": platform.platform(), "versions": versions()})


# ---------------------------------------------------------------------------------------------- loss


def measure_loss(inside: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Memory and time of head and cross-entropy, forward and backward, beyond the inputs."""
    import torch

    kinds = ["full", "chunked", *(["liger"] if torch.cuda.is_available() else [])]
    result: dict[str, Any] = {kind: inside(f"loss:{kind}") for kind in kinds}
    result["full / chunked memory"] = round(result["full"]["peak_mb"] / result["chunked"]["peak_mb"], 2)
    result["chunked / full time"] = round(result["chunked"]["seconds"] / result["full"]["seconds"], 3)
    return result


def loss_of(size: dict[str, Any], folder: Path, kind: str) -> None:
    import torch

    from hpc_ewc.model.loss import build_loss

    n, hidden, vocabulary = size["loss"]
    dtype = getattr(torch, size["dtype"])
    torch.manual_seed(0)
    h = torch.randn(n, hidden, dtype=dtype, device=device(), requires_grad=True)
    w = (0.06 * torch.randn(vocabulary, hidden, dtype=dtype, device=device())).requires_grad_()
    y = torch.randint(0, vocabulary, (n,), device=device())
    function = build_loss(kind, 30.0)  # type: ignore[arg-type]

    def once() -> None:
        h.grad = w.grad = None
        function(h, w, y).backward()

    before = reset_peak()
    once()
    extra = peak() - before
    report(folder, {"peak_mb": round(extra / 1e6, 1), "seconds": round(median_s(once, 5), 4)})


# ---------------------------------------------------------------------------------------------- load


def config_of(size: dict[str, Any]) -> Any:
    from transformers import Gemma2Config

    softcaps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    return Gemma2Config(**size["config"], **softcaps, tie_word_embeddings=True, max_position_embeddings=8192)


def checkpoint(size: dict[str, Any], folder: Path, layers: str = "") -> None:
    """A Hugging Face folder with random weights; deeper where it is about the memory that loading takes."""
    import torch
    from transformers import Gemma2ForCausalLM

    torch.manual_seed(0)
    config = config_of({"config": size["config"] | ({"num_hidden_layers": size[layers]} if layers else {})})
    Gemma2ForCausalLM(config).to(getattr(torch, size["dtype"])).save_pretrained(folder / "model")
    report(folder, {})


def load(size: dict[str, Any], folder: Path, way: str) -> None:
    """Peak memory of a rank and time until the model is in shards: ours, and from_pretrained followed by sharding."""
    import torch
    from transformers import Gemma2ForCausalLM

    from hpc_ewc.model.load import load_model
    from hpc_ewc.model.mesh import build_mesh, shard_model
    from hpc_ewc.train import collective

    place = collective.join(600)
    mesh = build_mesh(place.type)
    before_host, started = _status("VmRSS"), time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")
    if way == "shards":
        model = load_model(folder / "model", mesh, dtype=size["dtype"])
    else:
        model = Gemma2ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
        model.to(place)
        shard_model(model, mesh, getattr(torch, size["dtype"]))
    parameters = sum(p.numel() for p in model.parameters())
    host = (_status("VmHWM") - before_host) / 1e6
    result = {"parameters": parameters, "fp32_mb": round(4 * parameters / 1e6, 1), "peak_host_mb": round(host, 1)}
    if place.type == "cuda":
        result["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    report(folder, result | {"seconds": round(time.perf_counter() - started, 2)})
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------------------------------------- step


def build_trainer(size: dict[str, Any], strength: float) -> tuple[Any, Any]:
    """Our engine on random weights, made in shards; and a batch of random tokens."""
    import dataclasses

    import torch

    from hpc_ewc.config import EwcConfig, TrainConfig
    from hpc_ewc.ewc import EwcPenalty
    from hpc_ewc.model import load as room
    from hpc_ewc.model.attention import choose_attention
    from hpc_ewc.model.gemma import build_buffers, build_empty
    from hpc_ewc.model.mesh import build_mesh, shard_model
    from hpc_ewc.train import collective
    from hpc_ewc.train.anchor import Elastic, Free
    from hpc_ewc.train.loop import Trainer
    from hpc_ewc.train.optimizer import build_optimizer

    place = collective.join(600)
    with tempfile.TemporaryDirectory() as folder:
        config_of(size).save_pretrained(folder)
        attention = choose_attention("auto", Path(folder), place)
        model = build_empty(Path(folder), attention)
    shard_model(model, build_mesh(place.type), getattr(torch, size["dtype"]))
    model.to_empty(device=place)
    build_buffers(model)
    model.origin = room.Origin(Path(), getattr(torch, size["dtype"]), attention, "chunked")
    parameters = dict(model.named_parameters())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.zero_() if "norm" in name else parameter.normal_(0.0, 0.02)
    config = TrainConfig(learning_rate=1e-5)
    hold: Any = Free(parameters)
    if strength:
        # as loaded from files: the anchor in bf16 where it is exact, the Fisher in bf16
        anchor = {name: p.detach().bfloat16() for name, p in parameters.items()}
        fisher = {name: torch.full_like(a, 1e-6) for name, a in anchor.items()}
        hold = Elastic(EwcPenalty(model, anchor, fisher, strength))
    trainer = Trainer(model, parameters, build_optimizer(parameters, config), hold, EwcConfig(strength), config, place)
    return trainer, synthetic_batch(size, dataclasses.replace(config))


def synthetic_batch(size: dict[str, Any], config: Any, ranks: int | None = None) -> Any:
    import numpy as np
    import torch
    import torch.distributed as dist

    from hpc_ewc.data.loader import StepBatch

    rows, length = size["tokens"]
    world_size = dist.get_world_size() if ranks is None else ranks
    generator = torch.Generator().manual_seed(int(os.environ.get("RANK", "0")))
    ids = torch.randint(1, size["config"]["vocab_size"], (rows, length), generator=generator)
    microbatch = {"input_ids": ids, "labels": ids}
    return StepBatch(0, np.arange(rows * world_size), rows * world_size * (length - 1), (microbatch,))


def step(size: dict[str, Any], folder: Path, strength: str) -> None:
    """A step as a whole and by part, memory by what holds it, and what a checkpoint adds to the steps around it."""
    import torch
    import torch.distributed as dist

    from hpc_ewc.train.metrics import flop_per_token, peak_tflops

    trainer, batch = build_trainer(size, float(strength))
    before = reset_peak()
    whole = median_s(lambda: trainer.step(batch, 1e-5), size["steps"])
    extra = peak() - before
    seconds = time_parts(trainer, batch, size["steps"])
    tokens = batch.scored_tokens / whole
    result: dict[str, Any] = {"step_s": round(whole, 4), "tokens_per_s": round(tokens, 1)}
    place = trainer.device
    known_peak = peak_tflops(place)
    tflops = tokens * flop_per_token(trainer.model.config, size["tokens"][1]) / dist.get_world_size() / 1e12
    result["tflops_per_s_per_rank"] = round(tflops, 3)
    if known_peak is not None:
        result["mfu"] = round(tflops / known_peak, 4)
    result["parts_s"] = {name: round(value, 5) for name, value in seconds.items()}
    result["penalty_share"] = round(seconds["penalty"] / whole, 5)
    local = sum(p.to_local().numel() for p in trainer.parameters.values())
    result["memory_mb"] = {
        "parameters": round(4 * local / 1e6, 1),
        "gradients": round(4 * local / 1e6, 1),
        "optimizer": round(8 * local / 1e6, 1),
        "held by EWC": round(4 * local / 1e6, 1) if float(strength) else 0.0,
        "added by steps (gradients, optimizer, activations, gathered layers)": round(extra / 1e6, 1),
    }
    result["checkpoint"] = checkpoint_stall(trainer, batch, folder, whole)
    report(folder, result)
    torch.distributed.destroy_process_group()


def time_parts(trainer: Any, batch: Any, times: int) -> dict[str, float]:
    """Medians of the parts of a step, with a barrier of the device between them; the sum exceeds a plain step."""
    from hpc_ewc.train.loop import clip_

    spent: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise()
            spent.setdefault(name, []).append(time.perf_counter() - started)
            return result

        return run

    parameters = list(trainer.parameters.values())
    for _ in range(times + 1):
        trainer.optimizer.zero_grad(set_to_none=True)
        microbatch = batch.microbatches[0]
        loss = timed("forward", trainer._loss_sum)(microbatch)
        timed("backward", (loss / batch.scored_tokens).backward)()
        timed("penalty", trainer.hold.add_gradient_)()
        timed("clip", clip_)(parameters, 1.0)
        timed("optimizer", trainer.optimizer.step)()
        timed("measure (each logged step)", trainer.hold.measure)(1e-5)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def checkpoint_stall(trainer: Any, batch: Any, folder: Path, step_s: float) -> dict[str, Any]:
    """Seconds that training stands still for a checkpoint, and how much slower the steps beside its writing are."""
    from hpc_ewc.rundir import StageDir
    from hpc_ewc.train.checkpoint import Checkpoints
    from hpc_ewc.train.collective import any_rank
    from hpc_ewc.train.optimizer import optimizer_state

    checkpoints = Checkpoints(StageDir(folder / "run"), "0" * 12, "benchmark.0", 1, None)
    weights = {name: parameter.detach() for name, parameter in trainer.parameters.items()}
    state = {"model": weights, "optimizer": optimizer_state(trainer.optimizer, trainer.parameters)}
    position = {"tokens": 0, "loss": 0.0, "seconds": 0.0}
    checkpoints.start(state, 1, **position)
    checkpoints.finish()
    synchronise()
    started = time.perf_counter()
    checkpoints.start(state, 2, **position)
    stall = time.perf_counter() - started
    beside = []
    while not any_rank([checkpoints.is_ready()])[0]:
        began = time.perf_counter()
        trainer.step(batch, 1e-5)
        synchronise()
        beside.append(time.perf_counter() - began)
    checkpoints.finish()
    asynchronous = time.perf_counter() - started
    began = time.perf_counter()
    checkpoints.start(state, 3, **position)
    checkpoints.finish()
    synchronous = time.perf_counter() - began
    megabytes = sum(f.stat().st_size for f in (folder / "run").rglob("*") if f.is_file()) / 1e6
    return {
        "mb": round(megabytes, 1),
        "stall_s": round(stall, 4),
        "if waited for_s": round(synchronous, 4),
        "steps beside it": len(beside),
        "slower by": round(statistics.mean(beside) / step_s, 3) if beside else None,
        "until it counts_s": round(asynchronous, 3),
    }


# ---------------------------------------------------------------------------------------------- against HF Trainer


def trainer(size: dict[str, Any], folder: Path, way: str) -> None:
    """Tokens a second in one process: the same model, batch, optimizer and number of steps."""
    steps = 2 * size["steps"]
    if way == "engine":
        engine, batch = build_trainer(size, 0.0)
        engine.step(batch, 1e-5)
        before, started = reset_peak(), time.perf_counter()
        for _ in range(steps):
            engine.step(batch, 1e-5)
        synchronise()
        seconds, tokens = time.perf_counter() - started, batch.scored_tokens * steps
    else:
        seconds, tokens, before = _hf_trainer(size, folder, steps)
    peak_mb = round((peak() - before) / 1e6, 1)
    report(folder, {"tokens_per_s": round(tokens / seconds, 1), "peak_beyond_model_mb": peak_mb})


def _hf_trainer(size: dict[str, Any], folder: Path, steps: int) -> tuple[float, int, int]:
    import torch
    from transformers import Gemma2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    marks: list[float] = []
    memory: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            synchronise()
            marks.append(time.perf_counter())
            if not memory:
                memory.append(reset_peak())

    batch = synthetic_batch(size, None, ranks=1)
    ids = batch.microbatches[0]["input_ids"]
    rows = [{"input_ids": row, "labels": row} for _ in range(steps + 1) for row in ids]
    model = Gemma2ForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager")
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=len(ids),
        max_steps=steps + 1,
        learning_rate=1e-5,
        bf16=size["dtype"] == "bfloat16",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return marks[-1] - marks[0], batch.scored_tokens * (len(marks) - 1), memory[0]


INSIDE: dict[str, Callable[..., None]] = {
    "environment": environment,
    "loss": loss_of,
    "checkpoint": checkpoint,
    "load": load,
    "step": step,
    "trainer": trainer,
}

if __name__ == "__main__":
    main()
