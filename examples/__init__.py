"""Programs that use hpc_ewc and are not part of it."""
