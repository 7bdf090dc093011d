"""Bad input: experiments."""

from __future__ import annotations

from tests.end_to_end.bad_input import SWEEP, Case, add, put, swap

EXPERIMENTS = [
    Case("experiment", "no such file", "nowhere.toml: no such file", command="submit nowhere.toml"),
    Case("experiment", "a folder", "model: cannot be read: Is a directory", command="submit model"),
    Case("experiment", "not TOML", "x.toml: not valid TOML: ", put("x.toml", "[model\n")),
    Case(
        "experiment",
        "brackets without end",
        "not valid TOML: brackets are nested too deep",
        add("[a]\nb = " + "[" * 5000),
    ),
    Case("experiment", "not UTF-8", "x.toml: not UTF-8 (byte 0xe8 at 2); save it as that", put("x.toml", b"# \xe8\n")),
    Case(
        "experiment",
        "a number of 400 digits",
        "ewc.strength: a whole number of 1329 bits; allowed are at most 63",
        add(f"[ewc]\nstrength = 1{'0' * 400}"),
    ),
    Case(
        "experiment",
        "a number of 5000 digits",
        "x.toml: not valid TOML: Exceeds the limit",
        add(f"[ewc]\nstrength = 1{'0' * 5000}"),
    ),
    Case(
        "experiment",
        "its name",
        "Big Name.toml: its name becomes the name of the run folder",
        put("Big Name.toml", SWEEP),
        command="submit|Big Name.toml",
    ),
    Case("experiment", "unknown table", "x.toml: unknown table 'modell'; did you mean 'model'?", add("[modell]")),
    Case("experiment", "no table", "x.toml: 'ewc' must be a table [ewc], not 3", put("x.toml", "ewc = 3\n" + SWEEP)),
    Case("experiment", "required key", "x.toml: 'model.path' is required; Hub id", swap('path = "model"', "")),
    Case(
        "experiment",
        "unknown key",
        "x.toml: unknown key 'ewc.strenght'; did you mean 'strength'?",
        add("[ewc]\nstrenght = 1"),
    ),
    Case(
        "experiment", "wrong type", "x.toml: ewc.strength = 'a lot': must be a number", add("[ewc]\nstrength = 'a lot'")
    ),
    Case(
        "experiment",
        "a date",
        "ewc.strength = datetime.date(2020, 1, 1): must be a number",
        add("[ewc]\nstrength = 2020-01-01"),
    ),
    Case("experiment", "not finite", "x.toml: ewc.strength = nan: must be finite", add("[ewc]\nstrength = nan")),
    Case(
        "experiment",
        "out of range",
        "x.toml: train.learning_rate = 0.0: allowed is (0, 10]",
        add("[train]\nlearning_rate = 0"),
    ),
    Case(
        "experiment",
        "not a choice",
        "ewc.mode = 'proximl': allowed are gradient, proximal; did you mean 'proximal'?",
        add("[ewc]\nmode = 'proximl'"),
    ),
    Case(
        "experiment",
        "a line break in a value",
        "model.path = 'a\\nb': must not hold control characters",
        swap('"model"', '"a\\nb"'),
    ),
    Case(
        "experiment",
        "two lengths",
        "x.toml: train.steps and train.epochs are both set",
        add("[train]\nsteps = 3\nepochs = 1"),
    ),
    Case(
        "experiment",
        "exports that do not end",
        "train.export_at = [0.5]: must rise and end in 1.0",
        add("[train]\nexport_at = [0.5]"),
    ),
    Case(
        "experiment",
        "files of no source",
        'data.files and data.source = "files" go together',
        swap('source = "files"\nfiles = ["c', 'source = "a/b"\nfiles = ["c'),
    ),
    Case("experiment", "grid over nothing", "grid over unknown key 'ewc.lambda'", swap("ewc.strength", "ewc.lambda")),
    Case(
        "experiment",
        "grid over what changes nothing",
        "'local_batch_size' changes no result, so its runs would be the same run",
        swap("ewc.strength =", "train.local_batch_size = [1, 2]\newc.strength ="),
    ),
    Case(
        "experiment",
        "a value twice",
        "a value appears twice, which would be a duplicate run",
        swap("[0.0, 1e6]", "[0, 0.0]"),
    ),
    Case(
        "experiment",
        "no values",
        "grid.ewc.strength = []: must be a list of at least one value",
        swap("[0.0, 1e6]", "[]"),
    ),
    Case(
        "experiment",
        "unknown suite",
        "x.toml: evaluate.suites: unknown suite, cell or task 'arc_esy.en'; did you mean 'arc_easy.en'?",
        swap("arc_easy.en", "arc_esy.en"),
    ),
    Case(
        "experiment",
        "a suite that leaves its folder",
        "unknown suite, cell or task '../../x'",
        swap("arc_easy.en", "../../x"),
    ),
    Case(
        "experiment",
        "shots of no task",
        "evaluate.shots.arc_esy: no task of that name is evaluated; did you mean 'arc_easy'?",
        swap("suites =", "shots = { arc_esy = 3 }\nsuites ="),
    ),
    Case(
        "experiment",
        "no prompts",
        "evaluate.prompts = []: name at least one of core, native",
        swap("suites =", "prompts = []\nsuites ="),
    ),
    Case(
        "experiment",
        "no such exports",
        "evaluate.checkpoints = 'every 0': allowed are final, all, \"every 2\"",
        swap("suites =", 'checkpoints = "every 0"\nsuites ='),
    ),
    Case(
        "experiment",
        "a folder of tasks that is not there",
        "x.toml: evaluate.include = 'no/such': no such folder",
        swap("suites =", 'include = ["no/such"]\nsuites ='),
    ),
    Case(
        "experiment",
        "a held-out text that is not there",
        "x.toml: evaluate.heldout.en = 'no.jsonl': no such file",
        swap("suites =", 'heldout = { en = "no.jsonl" }\nsuites ='),
    ),
    Case(
        "experiment",
        "a language that leaves its folder",
        "data.language = '../x': must be small letters, such as lt",
        swap("heldout_documents", 'language = "../x"\nheldout_documents'),
    ),
    Case(
        "experiment",
        "nothing held out",
        "ppl_heldout.lt has no text: data.heldout_documents = 0; raise it, or name a file",
        swap("heldout_documents = 1", "heldout_documents = 0"),
    ),
    Case(
        "experiment",
        "replicas that do not divide",
        "train.dp_replicate = 3: does not divide the 2 ranks of a training",
        add("[train]\ndp_replicate = 3\n[resources.train]\nnproc_per_node = 2"),
    ),
    Case(
        "experiment",
        "two ranks on a GPU",
        "nproc_per_node = 8, gpus_per_node = 4: a GPU takes one rank; leave nproc_per_node out",
        add("[resources.train]\nnproc_per_node = 8\ngpus_per_node = 4"),
    ),
]
