"""Fine-tuning a checkpoint on a labelled task (Devlin et al. 2019, section 4 and appendix A.3).

The paper trains all parameters of the pretrained model and a new classification layer on the
pooled [CLS] state: batch 16 or 32, peak rate 5e-5 to 2e-5, 2 to 4 epochs, warmup over a tenth of
the steps. Its repository fine-tunes small models with rates up to 3e-4 for 4 epochs.

Deviation: the classifier reads the mean of the tokens' states, not the pooled [CLS] state. Only
next-sentence prediction trains that state, and a short pretraining hardly does. Both arms have this
deviation.

A decoder's classifier reads the last token. In an encoder-decoder, the decoder reads the source
again after its start token. The classifier, a dense layer and a linear map, reads the end of the
text (Lewis et al. 2020, section 3.1; transformers' T5 has the same).
"""

from __future__ import annotations

from dataclasses import replace

from plm_jax.experiment import Experiment, Intervals
from plm_jax.models.model import Model
from plm_jax.optim.adamw import AdamW
from plm_jax.tasks.classification import Classification
from plm_jax.tasks.labelled_text import LabelledText

BATCH = 32


def recipe(
  model: Model, data: LabelledText, *, classes: int, examples: int, peak: float = 1e-3
) -> Experiment:
  """The experiment of both arms, which differ only in the parameters that they start from.

  examples: number of labelled examples; up to 2,000 are read for 4 epochs, more for 2.
  """
  if "pooler" in getattr(model, "classifier", ""):  # not of a decoder, which reads its last token
    model = replace(model, classifier="mean")
  rates = {name: 0.1 for name in ("dropout", "attention_dropout") if hasattr(model, name)}
  if getattr(model, "hidden_dropout", 0) or getattr(model, "final_dropout", False):
    rates["hidden_dropout"] = 0.1  # T5 has one rate for all places
  epochs = 2 if examples > 2000 else 4
  steps = max(1, epochs * examples // BATCH)
  return Experiment(
    model=replace(model, **rates),
    objectives=(Classification(labels=classes),),
    data=data,
    optim=AdamW(peak=peak, warmup=max(1, steps // 10)),
    global_batch=BATCH,
    steps=steps,
    schedule=Intervals(log=25, save=200, keep=1),
  )
