"""The methods by their names on the command line, `--peft=lora`."""

from plm_jax.peft.bitfit import BitFit
from plm_jax.peft.bottleneck import PFEIFFER, Bottleneck
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora
from plm_jax.peft.prefix import Prefix
from plm_jax.peft.prompt import Prompt

AnyPeft = Lora | Bottleneck | Prefix | Prompt | Ia3 | BitFit

METHODS: dict[str, AnyPeft] = {
  "lora": Lora(),
  "dora": Lora(dora=True),
  "houlsby": Bottleneck(),
  "pfeiffer": PFEIFFER,
  "prefix": Prefix(),
  "prompt": Prompt(),
  "ia3": Ia3(),
  "bitfit": BitFit(),
}
