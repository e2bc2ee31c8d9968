"""The methods by their names on the command line, `--peft=lora`."""

from plm_jax.peft.bitfit import BitFit
from plm_jax.peft.ia3 import Ia3
from plm_jax.peft.lora import Lora

AnyPeft = Lora | Ia3 | BitFit

METHODS: dict[str, AnyPeft] = {
  "lora": Lora(),
  "dora": Lora(dora=True),
  "ia3": Ia3(),
  "bitfit": BitFit(),
}
