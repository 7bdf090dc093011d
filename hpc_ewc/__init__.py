"""hpc_ewc: continual pretraining of Gemma on a Slurm cluster, held by Elastic Weight Consolidation."""

__version__ = "0.1.0"
