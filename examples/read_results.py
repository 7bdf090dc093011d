"""Read the results of an experiment into pandas: `python examples/read_results.py runs/miniature`.

The cells (`# %%`) run one by one in an editor or in Jupyter. pandas comes with lm-eval; hpc_ewc does not need it.
"""

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from hpc_ewc.report import load_records

run_folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/miniature")

# %% One row per result: every metric, filter and subset of every cell of every run.
results = pd.DataFrame(load_records(run_folder))
results["strength"] = [coordinates.get("ewc.strength") for coordinates in results["coordinates"]]
print(f"{len(results)} results of {results['run'].nunique()} runs in {results['cell'].nunique()} cells")

# %% The metric that represents each cell: accuracy of a task, bits per byte or perplexity of a text.
primary = results[results["primary"]]
print(primary.pivot_table(index="strength", columns="cell", values="value", dropna=False).round(3).to_string())

# %% Difference of each run to the base model. Its significance needs the answers to single documents:
# hpc_ewc.report.compare pairs two runs document by document, and `hpc-ewc report` does so with all of them.
base = primary[primary["run"] == "base"][["cell", "metric", "value"]]
trained = primary[primary["run"] != "base"]
differences = trained.merge(base, on=["cell", "metric"], suffixes=("", "_of_base"))
differences["difference"] = differences["value"] - differences["value_of_base"]
table = differences.pivot_table(index="strength", columns="cell", values="difference")
print(table.round(3).to_string())

# %% Accuracy against λ. λ = 0 has no logarithm: symlog is linear below the smallest λ.
shares = differences[differences["metric"].str.startswith("acc")]
smallest = shares.loc[shares["strength"] > 0, "strength"].min()
figure, axes = plt.subplots(layout="constrained")
for language, group in shares.groupby("language"):
    (100 * group.groupby("strength")["difference"].mean()).plot(ax=axes, marker="o", label=language)
axes.axhline(0, color="grey", linewidth=0.8)
axes.set_xscale("symlog", linthresh=smallest)
axes.set(xlabel="λ", ylabel="accuracy against the base, points (mean over tasks)")
axes.legend(title="language")
picture = run_folder / "report" / "accuracy_against_base.png"
picture.parent.mkdir(exist_ok=True)
figure.savefig(picture, dpi=150)
print(f"wrote {picture}")
