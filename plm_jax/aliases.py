"""Names of other libraries for the fields of a configuration, which `--set` answers."""

EPOCHS = "it counts updates of global_batch rows, not passes over the text;"
_NAMES = """
optim.peak: lr learning_rate max_lr peak_lr
optim.warmup: warmup_steps num_warmup_steps warmup_ratio
optim.decay: weight_decay wd
optim.b2: beta2 adam_beta2
optim.schedule: scheduler lr_scheduler lr_scheduler_type
optim.clip: grad_clip max_grad_norm clip_norm
optim: optimizer optimiser
steps: epochs epoch num_epochs num_train_epochs max_steps num_steps train_steps iterations iters
global_batch: batch_size batch bs train_batch_size per_device_train_batch_size
data.length: max_length max_len max_seq_length seq_length seq_len block_size
task.length: max_length max_len max_seq_length seq_length seq_len
data.source: dataset corpus text
data.weights: mixture mixture_weights sampling_weights probabilities
data.alpha: sampling_alpha temperature
model.width: hidden_size d_model dim n_embd
model.layers: num_layers num_hidden_layers n_layer depth
model.heads: num_heads num_attention_heads n_head
model.hidden: intermediate_size d_ff ffn_dim
objectives.mlm.rate: mlm_probability mask_prob masking_rate
compute.dtype: dtype precision fp16 bf16
compute.micro_batches: gradient_accumulation_steps accumulation accum
schedule.evaluate: eval_steps eval_interval
schedule.save: save_steps save_interval
schedule.log: logging_steps log_interval
"""
FIELDS = {
  field: names.split() for field, names in (l.split(": ") for l in _NAMES.strip().splitlines())
}


def fields_named(name: str) -> list[str]:
  """The fields that a name of another library may mean; empty for other names."""
  return [field for field, names in FIELDS.items() if name.lower() in names]
