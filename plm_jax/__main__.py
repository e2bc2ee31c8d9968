"""Lists the commands: python -m plm_jax."""

import ast
from pathlib import Path

COMMANDS = Path(__file__).parent / "commands"


def listed() -> str:
  """A line for each command, by the first line of its docstring; nothing is imported."""
  lines = [
    "run_pretrain.py, run_finetune.py, and python -m plm_jax.NAME, each with --help:",
    "",
  ]
  for file in sorted(COMMANDS.glob("[a-z]*.py")):
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    lines.append(f"  {file.stem:12} {docstring.partition(chr(10) * 2)[0].replace(chr(10), ' ')}")
  return "\n".join(lines)


if __name__ == "__main__":
  print(listed())
