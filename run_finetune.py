"""Fine-tunes a checkpoint on a task; compares it with the same model from random initialisation and
with trivial baselines.

The default task: were the words of a sentence of the installed text shuffled? It is trained on 500
labels and on all, three seeds each. --task=label asks which package it comes from.

  python run_finetune.py --from=runs/bert_tiny
  python run_finetune.py --from=runs/bert_tiny --task=label
  python run_finetune.py --from=runs/minilm --data=reviews.csv              # one text, one label
  python run_finetune.py --from=runs/minilm --task=pairs --data=GLUE/QNLI   # two texts, one label
  python run_finetune.py --from=runs/minilm --task=regress --data=train.tsv --dev=dev.tsv
  python run_finetune.py --from=runs/minilm --task=similar --data=pairs.tsv # sentence vectors
  python -m plm_jax.predict --model=runs/minilm/finetune/classify-reviews.csv/pretrained-all-0 \
--text="a fine film"

--peft=lora --set=peft.rank=8 trains few parameters beside the frozen model (docs/peft.md).
--search first tries a small grid of recipes and chooses on dev; --teacher=DIR learns from a
fine-tuned model too; docs/finetuning.md has more options.
--from is a run, a downloaded model, or an experiment such as experiments/bilstm.py:tiny, whose
model is trained from random parameters. --data is a .csv, .tsv or .jsonl file (classify, pairs,
multi, regress, similar, choose, write), a .conll or .conllu file (tag), a .json file like SQuAD's
(answer), or a folder with train, dev and test files. Without --task the file decides, and a line
says which columns were chosen; other text needs no labels: its words are shuffled. A quick try:
--labels=200 --set=steps=20. A stopped command continues when it is given again.
"""

from absl import flags

from plm_jax import api, cli
from plm_jax.errors import UserError
from plm_jax.peft.methods import METHODS
from plm_jax.tasks.registry import SUITES, TASKS
from plm_jax.train import launch, processes
from plm_jax.train.process import enough_threads

FLAGS = flags.FLAGS


def define_flags() -> None:
  flags.DEFINE_string("from", None, "The run, or the published model's directory, to fine-tune; "
                      "or FILE:FUNCTION, an experiment, for random parameters.")  # fmt: skip
  flags.DEFINE_string("task", None, f"{', '.join([*TASKS, *SUITES])}, or FILE:CLASS of your own "
                      "(default: what the data suggest).")  # fmt: skip
  flags.DEFINE_string("data", None, "A file or a folder with train, dev and test files.")
  flags.DEFINE_string("dev", None, "A file for the dev split (default: a share of --data).")
  flags.DEFINE_string("test", None, "A file for the test split (default: a share of --data).")
  flags.DEFINE_multi_string("set", [], "FIELD=VALUE, such as task.label=stars. Repeatable.")
  flags.DEFINE_string("arms", None, "pretrained, or pretrained,random to compare (default: the "
                      "first for a published model, else both).")  # fmt: skip
  flags.DEFINE_string("labels", None, "Numbers of training examples, such as 500,all.")
  flags.DEFINE_integer("seeds", None, "Number of seeds, for examples, order, dropout, new "
                       "parameters (default: 3 to compare, else 1).")  # fmt: skip
  flags.DEFINE_bool("search", False, "Choose learning rate, batch and epochs on the dev split.")
  flags.DEFINE_string("teacher", None, "A fine-tuned model whose probabilities are learnt too.")
  flags.DEFINE_string(
    "peft", None, f"Train few parameters beside the frozen model: {', '.join(METHODS)}."
  )
  flags.DEFINE_bool("probe", True, "The baseline of a linear model on the frozen checkpoint.")
  flags.DEFINE_string(
    "workdir",
    None,
    "Where the runs are kept (default: FROM/finetune/TASK, or "
    "runs/NAME/finetune/TASK for a published model).",
  )
  flags.DEFINE_string("cache", None, "Where prepared text is kept (default: ~/.cache/plm_jax).")
  flags.DEFINE_bool("dry_run", False, "Show the task and the configuration, train nothing.")
  launch.define_flags()
  flags.adopt_module_key_flags(launch)


def main() -> None:
  start = FLAGS["from"].value
  if not start:
    raise UserError(
      "run_finetune.py needs --from=DIR, a run or a downloaded model, or --from=FILE:FUNCTION, an "
      "experiment."
    )
  names = (
    "task",
    "data",
    "dev",
    "test",
    "arms",
    "labels",
    "seeds",
    "search",
    "teacher",
    "probe",
    "peft",
  )
  options = {name: FLAGS[name].value for name in (*names, "workdir", "cache", "dry_run")}
  enough_threads()
  with processes.joined(*launch.flags_of_place()):
    api.finetune(start, settings=FLAGS.set, **options)


if __name__ == "__main__":
  cli.run(main)
