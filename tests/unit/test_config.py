"""Strict reading of experiments: one clear error per mistake, and a lossless round trip."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpc_ewc.config import (
    SECTIONS,
    Experiment,
    build_experiment,
    load_experiment,
    option_docs,
    render_toml,
    render_value,
    replace_at,
)
from hpc_ewc.errors import ConfigError

SMALLEST = '[model]\npath = "a/model"\n[data]\nsource = "a/corpus"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_keys_except_model_and_data_have_defaults(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, SMALLEST))
    assert experiment.ewc.strength == 0.0
    assert experiment.evaluate.shots == {"gsm8k": 5, "mmlu": 5}
    assert experiment.data.sequence_length == 512


MISTAKES = [
    ("[modell]\n", "unknown table 'modell'; did you mean 'model'"),
    ("model = 3\n", r"'model' must be a table \[model\], not 3"),
    ("[model]\n[data]\nsource = 'a/corpus'\n", "'model.path' is required"),
    (SMALLEST + "[ewc]\nstrenght = 1\n", "unknown key 'ewc.strenght'; did you mean 'strength'"),
    (SMALLEST + "[ewc]\nstrength = 'a lot'\n", "ewc.strength = 'a lot': must be a number"),
    (SMALLEST + "[ewc]\nstrength = true\n", "ewc.strength = True: must be a number"),
    (SMALLEST + "[ewc]\nstrength = -1\n", r"ewc.strength = -1.0: allowed is \[0, 1e\+30\]"),
    (SMALLEST + "[ewc]\nstrength = nan\n", "ewc.strength = nan: must be finite"),
    (SMALLEST + "[ewc]\nstrength = inf\n", "ewc.strength = inf: must be finite"),
    (SMALLEST + "[ewc]\nmode = 'proximl'\n", "allowed are gradient, proximal; did you mean 'proximal'"),
    (SMALLEST + "[train]\nsteps = 1.5\n", "train.steps = 1.5: must be a whole number"),
    (SMALLEST + "[train]\nsteps = 0\n", r"train.steps = 0: allowed is \[1, inf\)"),
    (SMALLEST + "[train]\nlearning_rate = 0\n", r"train.learning_rate = 0.0: allowed is \(0, 10\]"),
    (SMALLEST + "[train]\nbetas = [0.9]\n", "must have 2 values"),
    (SMALLEST + "[train]\nexport_at = 1.0\n", "must be a list"),
    (SMALLEST + "[train]\nexport_at = [0.5]\n", "must rise and end in 1.0"),
    (SMALLEST + "[train]\nexport_at = [1.0, 0.5, 1.0]\n", "must rise and end in 1.0"),
    (SMALLEST + "[train]\nsteps = 3\nepochs = 1\n", "train.steps and train.epochs are both set"),
    (SMALLEST + "[train]\nsteps = 3\n[grid]\ntrain.epochs = [1, 2]\n", "both set"),
    (SMALLEST + '[ewc]\nmode = "proximal"\nupdate = "one_pass"\n', 'only with ewc.mode = "gradient"; take "auto"'),
    (SMALLEST + '[ewc]\nupdate = "one_pass"\n[grid]\newc.mode = ["gradient", "proximal"]\n', "ewc.update = .one_pass"),
    (SMALLEST + "[fisher]\nsamples = 2\n", 'only with fisher.labels = "sampled"'),
    (
        SMALLEST + '[fisher]\nsamples = 4\n[grid]\nfisher.labels = ["sampled", "gold"]\n',
        "fisher.samples = 4: only with",
    ),
    (SMALLEST + "[grid]\nfisher.samples = [1, 4]\n", "fisher.samples = 4: only with"),
    (SMALLEST + "[fisher]\nsource = 'files'\n", "fisher.files and fisher.source"),
    (SMALLEST + '[grid]\ndata.source = ["a/corpus", "files"]\n', "data.files and data.source"),
    ("[model]\npath = 'a\\tb'\n".replace("'", '"'), "must not hold control characters"),
    (SMALLEST + "[grid]\newc.lambda = [1]\n", "grid over unknown key 'ewc.lambda'"),
    (SMALLEST + "[grid]\nevaluate.limit = [1]\n", "grid over unknown table 'grid.evaluate'"),
    (SMALLEST + "[grid]\newc = [1]\n", "must name a key, such as"),
    (SMALLEST + "[grid]\newc.strength = 3\n", "must be a list of at least one value"),
    (SMALLEST + "[grid]\newc.strength = []\n", "must be a list of at least one value"),
    (SMALLEST + "[grid]\newc.strength = [1, -1]\n", r"grid.ewc.strength = -1.0: allowed is"),
    (SMALLEST + "[grid]\newc.strength = [0, 0.0]\n", "appears twice, which would be a duplicate run"),
    (SMALLEST + "[grid]\ntrain.local_batch_size = [1, 2]\n", "changes no result, so its runs would be the same run"),
    (SMALLEST + "[resources.trian]\nnodes = 1\n", "unknown table 'resources.trian'; did you mean 'train'"),
    (SMALLEST + "[resources.train]\nnodes = 0\n", r"resources.train.nodes = 0: allowed is \[1, inf\)"),
    (SMALLEST + "[resources]\ntrain = 3\n", "'resources.train' must be a table, not 3"),
    ("[model\n", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[message[:40] for _, message in MISTAKES])
def test_errors_name_the_file_key_value_and_fix(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_keys_are_checked_together_at_each_grid_point(tmp_path: Path) -> None:
    files = SMALLEST.replace('source = "a/corpus"', 'source = "files"')
    grid = '[grid]\ndata.files = [["a.jsonl"], ["b.jsonl"]]\nfisher.labels = ["sampled"]\n'
    experiment = load_experiment(write(tmp_path, files + "[fisher]\nsamples = 4\n" + grid))
    assert experiment.data.files == () and experiment.grid["data.files"] == (("a.jsonl",), ("b.jsonl",))


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere.toml: no such file"):
        load_experiment(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe8\n")
    with pytest.raises(ConfigError, match="latin.toml: not UTF-8 .byte 0xe8 at 2.; save it as that"):
        load_experiment(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_experiment(tmp_path)


def test_rendering_and_loading_gives_the_same_object(tmp_path: Path) -> None:
    text = SMALLEST + (
        '[data]\nfiles = ["a b.jsonl", "č\\"\\\\.txt"]\n'.replace("[data]\n", "")
        + '[evaluate]\nheldout = { en = "x.jsonl" }\nlimit = 3\n'
        "[grid]\newc.strength = [0, 1e6]\ntrain.export_at = [[1.0], [0.5, 1.0]]\n[resources.train]\nnodes = 2\n"
    )
    text = text.replace('source = "a/corpus"', 'source = "files"')
    experiment = load_experiment(write(tmp_path, text))
    again = load_experiment(write(tmp_path, render_toml(experiment)))
    assert again == experiment
    point = replace_at(experiment, {"ewc.strength": 1e6, "train.export_at": (0.5, 1.0)})
    assert load_experiment(write(tmp_path, render_toml(point))) == point
    assert point.grid == {}


def test_rendering_some_sections_leaves_the_others_at_their_defaults(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, SMALLEST + "[ewc]\nstrength = 5\n[train]\nsteps = 9\n"))
    part = load_experiment(write(tmp_path, render_toml(experiment, ("model", "data"))))
    assert part.model == experiment.model
    assert part.data == experiment.data
    assert part.ewc.strength == 0.0
    assert part.train.steps is None


@given(st.text(alphabet=st.characters(blacklist_categories=("Cs",))))
def test_any_string_survives_a_toml_value(text: str) -> None:
    import tomllib

    assert tomllib.loads(f"x = {render_value(text)}")["x"] == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_survives_a_toml_value(number: float) -> None:
    import tomllib

    assert tomllib.loads(f"x = {render_value(number)}")["x"] == number


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "strength", "x"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*SECTIONS, "grid", "resources", "z"]), JSON_LIKE))
def test_any_table_gives_an_experiment_or_a_config_error(table: dict[str, object]) -> None:
    try:
        assert isinstance(build_experiment(table, "x.toml"), Experiment)
    except ConfigError as error:
        assert str(error).startswith("x.toml: ")


def test_every_key_has_a_description() -> None:
    import dataclasses

    for cls in SECTIONS.values():
        assert set(option_docs(cls)) == {field.name for field in dataclasses.fields(cls)}


def test_every_shipped_experiment_loads(repository: Path) -> None:
    paths = [*sorted((repository / "sweeps").glob("*.toml")), repository / "tests" / "nano.toml"]
    assert len(paths) >= 2
    for path in paths:
        load_experiment(path)
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path}: its first line is the question it asks"
