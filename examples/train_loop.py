"""Plain PyTorch on one device: python examples/train_loop.py shards [--model DIR]

Run again with more --steps, it goes on in the middle of the epoch, with the rows that are left.
"""

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Qwen3Config

import pipeline.training as ws

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--model", help="a folder or hub id (default: a tiny random Qwen3)")
parser.add_argument("--output", default="trained-loop", type=Path)
for name, value in (("--steps", 10), ("--batch", 8), ("--accumulate", 2), ("--lr", 1e-3)):
    parser.add_argument(name, type=type(value), default=value)
args = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
if args.model:
    ws.require_tokenizer(args.shards, args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
else:
    tiny = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    model = AutoModelForCausalLM.from_config(Qwen3Config(vocab_size=5120, **tiny))
model.to(device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
stream = ws.ShardStream(args.shards, batch_size=args.batch, seed=0, rank=0, world=1)
loader = DataLoader(stream, args.batch, num_workers=1, collate_fn=ws.WeightedCollator(0))
place, step, epoch, taken = args.output / "place.pt", 0, 0, 0
if place.is_file():
    step, epoch, *saved = torch.load(place, map_location=device)
    for thing, state in zip((model, optimizer, stream), saved, strict=True):
        thing.load_state_dict(state)
while step < args.steps:
    stream.set_epoch(epoch)  # an epoch that was begun before goes on
    batches = iter(loader)
    while step < args.steps and (group := list(islice(batches, args.accumulate))):
        items, told = sum(map(ws.count_items, group)), 0.0  # targets of the whole step
        for batch in group:
            inputs = {name: value.to(device) for name, value in batch.items()}
            labels, weights = inputs.pop("labels"), inputs.pop("loss_scale")
            loss = ws.weighted_cross_entropy(model(**inputs).logits, labels, weights, items)
            loss.backward()
            told += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        step, taken = step + 1, taken + len(group)  # taken: since set_epoch or load_state_dict
        print(f"step {step}: loss {told:.4f}, {items} targets")
    epoch, taken = (epoch + 1, 0) if step < args.steps else (epoch, taken)
model.save_pretrained(args.output)
states = (model.state_dict(), optimizer.state_dict(), stream.state_dict(batches=taken))
torch.save((step, epoch, *states), place)
