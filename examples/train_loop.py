"""Plain PyTorch: python examples/train_loop.py shards [--model DIR]

Run again, it goes on in the middle of the epoch, with the rows that are left.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Qwen3Config

from pipeline.training import ShardStream, WeightedCollator, count_items, weighted_cross_entropy

TINY = {"vocab_size": 5120, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # without --model

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--model", help="a folder or hub id (default: a tiny random Qwen3)")
parser.add_argument("--output", default="trained", type=Path)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--accumulate", type=int, default=2, help="batches in a step")
parser.add_argument("--lr", type=float, default=1e-3)
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"

torch.manual_seed(0)
source = args.output if (args.output / "config.json").is_file() else args.model
if source:
    model = AutoModelForCausalLM.from_pretrained(source)
else:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**TINY))
model.to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)

stream = ShardStream(args.shards, batch_size=args.batch, seed=0)
if (args.output / "place.pt").is_file():
    stream.load_state_dict(torch.load(args.output / "place.pt"))
loader = DataLoader(stream, args.batch, num_workers=1, collate_fn=WeightedCollator(pad_token_id=0))

batches, taken = iter(loader), 0
while taken < args.steps * args.accumulate and (step := list(islice(batches, args.accumulate))):
    items = sum(count_items(batch) for batch in step)  # of the whole step, not of each batch
    told = 0.0
    for batch in step:
        inputs = {name: value.to(device) for name, value in batch.items()}
        labels, weights = inputs.pop("labels"), inputs.pop("loss_scale")
        loss = weighted_cross_entropy(model(**inputs).logits, labels, weights, items)
        loss.backward()
        told += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    taken += len(step)
    print(f"loss {told:.4f}, {items} targets")
model.save_pretrained(args.output)
torch.save(stream.state_dict(batches=taken), args.output / "place.pt")
