"""XLM-R in transformers (models/xlm_roberta, 5.23): RoBERTa with a vocabulary of 100 languages."""

from plm_jax.export.families.roberta import RobertaFamily

ARCHITECTURES = {f"XLM{name}": heads for name, heads in RobertaFamily.architectures.items()}


class XlmRobertaFamily(RobertaFamily):
  """Tensors are named as in RoBERTa."""

  model_type = "xlm-roberta"
  architectures = ARCHITECTURES


FAMILY = XlmRobertaFamily()
