"""Trains the same decoder in Hugging Face transformers and PyTorch, as a rival to time.

It is a program of its own, which `bench.duel` starts: `python hf_step.py SIZES.json`. It
imports nothing of omni_jax, so that an environment with torch alone can run it. The code
is what users of transformers would write: Qwen3-MoE, scaled dot product attention,
grouped matmuls, autocast and a fused AdamW.
"""

import json
import sys
import time

import torch
import transformers


def build(sizes):
  """Returns the model, in fp32, with its experts computed by grouped matmuls."""
  config = transformers.Qwen3MoeConfig(
    vocab_size=sizes['vocabulary'],
    hidden_size=sizes['width'],
    num_hidden_layers=sizes['layers'],
    num_attention_heads=sizes['heads'],
    num_key_value_heads=sizes['kv_heads'],
    head_dim=sizes['head_dim'],
    num_experts=sizes['experts'],
    num_experts_per_tok=sizes['top_k'],
    moe_intermediate_size=sizes['expert_hidden'],
    norm_topk_prob=True,
    output_router_logits=True,
    tie_word_embeddings=False,
    use_cache=False,
    max_position_embeddings=sizes['length'],
  )
  config._experts_implementation = sizes.get('experts_implementation', 'grouped_mm')
  config._attn_implementation = 'sdpa'
  torch.manual_seed(0)
  return transformers.Qwen3MoeForCausalLM(config)


def main(sizes):
  """Runs two steps, reports that it is ready, and runs more whenever it is asked to."""
  start = time.perf_counter()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  on_gpu = device == 'cuda'
  if on_gpu:
    torch.backends.cuda.matmul.allow_tf32 = True
  model = build(sizes).to(device).train()
  if sizes.get('checkpointing'):
    model.gradient_checkpointing_enable()
  optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
  shape = (sizes['rows'], sizes['length'])
  ids = torch.randint(0, sizes['vocabulary'], shape, device=device)

  def step():
    dtype = torch.bfloat16
    with torch.autocast(device, dtype, enabled=on_gpu):
      loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss

  def wait():
    if on_gpu:
      torch.cuda.synchronize()

  step()
  step()
  wait()
  ready = {
    'start_s': time.perf_counter() - start,
    'parameters': sum(p.numel() for p in model.parameters()),
    'versions': {'torch': torch.__version__, 'transformers': transformers.__version__},
  }
  if on_gpu:
    ready['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    steps = int(line)
    start = time.perf_counter()
    for _ in range(steps):
      step()
    wait()
    print(json.dumps((time.perf_counter() - start) / steps), flush=True)


if __name__ == '__main__':
  with open(sys.argv[1]) as file:
    main(json.load(file))
