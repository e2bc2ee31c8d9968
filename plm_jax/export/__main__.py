"""`python -m plm_jax.export`, the command of plm_jax/commands/export.py: this package has its
name."""

import runpy

runpy.run_module("plm_jax.commands.export", run_name="__main__", alter_sys=True)
