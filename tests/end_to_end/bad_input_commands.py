"""Bad input: profiles and command lines."""

from __future__ import annotations

from tests.end_to_end.bad_input import CLUSTER, SWEEP, Case, add, put

ON_PROFILE = "submit x.toml --profile profile.toml"
PROFILES = [
    Case("profile", "no such file", "no.toml: no such file", command="submit x.toml --profile no.toml"),
    Case(
        "profile",
        "unknown key",
        "profile.toml: unknown key 'local.cpu'; did you mean 'cpus'?",
        add("[local]\ncpu = 2", "profile.toml"),
        ON_PROFILE,
    ),
    Case(
        "profile",
        "no such executor",
        "executor = 'pbs': allowed are local, slurm",
        put("profile.toml", 'executor = "pbs"'),
        ON_PROFILE,
    ),
    Case(
        "profile",
        "a table of the other executor",
        '[slurm] has no meaning with executor = "local"; take it out',
        add("[slurm]\nqos = 'x'", "profile.toml"),
        ON_PROFILE,
    ),
    Case(
        "profile",
        "a token for jobs",
        "env.HF_TOKEN: jobs work offline and get no tokens",
        add("[env]\nHF_TOKEN = 'x'", "profile.toml"),
        ON_PROFILE,
    ),
    Case(
        "profile",
        "half a container",
        "container.runtime and container.image go together; set both or neither",
        add('[container]\nruntime = "pyxis"', "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "a shell in a value",
        "slurm.account = '$(id)': quotes, backslash",
        add('account = "$(id)"', "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "a line of a script in a value",
        "must not hold control characters",
        add('qos = "x\\n#SBATCH --uid=0"', "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "a flag of sbatch that is ours",
        "slurm.sbatch.comment: reserved, it has the token",
        add('sbatch = { comment = "x" }', "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "not filled in yet",
        "cluster.toml: slurm.account: not filled in yet; see the comments in the file",
        add('account = "FILL IN"', "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "too little time",
        "resources.train.time_min = 4: allowed is at least 5, slurm.signal_delay_s = 120 and 180 s to start",
        add("[resources.train]\ntime_min = 4", "cluster.toml"),
        CLUSTER,
    ),
    Case(
        "profile",
        "more GPU-hours than it allows",
        "this asks for up to 16 GPU-hours, max_gpu_hours = 10; say --yes, or raise it in the profile",
        put("profile.toml", "max_gpu_hours = 10\n[resources.train]\ngpus_per_node = 4\nnodes = 2\n"),
        ON_PROFILE,
        error="SubmitError",
    ),
]

EVALUATE = "evaluate model --suites arc_easy.en"
COMMANDS = [
    Case(
        "command line", "no such run folder", "nowhere: not a run folder, no jobs.jsonl in it", command="status nowhere"
    ),
    Case("command line", "logs of no run folder", "nowhere: not a run folder", command="logs nowhere x"),
    Case("command line", "nothing to cancel", "nowhere: not a run folder", command="cancel nowhere --yes"),
    Case("command line", "doctor of no profile", "no.toml: no such file", command="doctor --profile no.toml"),
    Case("command line", "prefetch of no experiment", "no.toml: no such file", command="prefetch no.toml"),
    Case("command line", "no checkpoint", "no checkpoint given; name folders, globs or hub ids", command="evaluate"),
    Case(
        "command line",
        "not a number of shots",
        "--shots gsm8k=²: 'gsm8k=²': not a whole number from 0 to 100",
        command=f"{EVALUATE} --shots gsm8k=²",
    ),
    Case(
        "command line",
        "not name=value",
        "--heldout en=: 'en' is not name=value, such as en=news.en.jsonl",
        command=f"{EVALUATE} --heldout en=",
    ),
    Case(
        "command line",
        "no such backend",
        "evaluate.backend = 'gguf': allowed are hf, vllm",
        command=f"{EVALUATE} --backend gguf",
    ),
    Case(
        "command line",
        "no such dtype",
        "model.dtype = 'fp8': allowed are bfloat16, float32",
        command=f"{EVALUATE} --dtype fp8",
    ),
    Case(
        "command line",
        "a folder of tasks that is not there",
        "evaluate.include = 'no': no such folder",
        command=f"{EVALUATE} --include no",
    ),
    Case(
        "command line",
        "a name that is none",
        "--name ../x: its name becomes the name of the run folder",
        command=f"{EVALUATE} --name ../x",
    ),
    Case(
        "command line",
        "an experiment's run folder",
        "--name x: {here}/runs/x is the run folder of an experiment; give another name",
        put("runs/x/experiment.toml", SWEEP),
        f"{EVALUATE} --name x",
    ),
    Case(
        "command line",
        "a file for the run folder",
        "--runs: the run folder would be {here}/corpus.jsonl/x, but {here}/corpus.jsonl is a file",
        command="submit x.toml --runs corpus.jsonl",
    ),
    Case(
        "command line",
        "a file for the tables",
        "--out: the folder of the tables would be {here}/x.toml, but {here}/x.toml is a file",
        command="submit x.toml --out x.toml",
    ),
    Case(
        "command line",
        "a folder that cannot be made",
        "/proc/none/x: cannot be made: No such file or directory; name another folder by --runs",
        command="submit x.toml --runs /proc/none",
        error="SubmitError",
    ),
    Case(
        "command line",
        "a run folder that Slurm misreads",
        "'%' in the path of a run folder has a meaning for Slurm; choose another by --runs",
        command=f"{CLUSTER} --runs a%j",
    ),
    Case(
        "command line",
        "a partition without a cluster",
        "--as-job login: the profile is not the profile of a cluster; name one by --profile",
        command="prefetch x.toml --as-job login",
        error="SubmitError",
    ),
]
