"""Hugging Face Trainer: python examples/train_trainer.py shards [--model DIR]

On several GPUs or machines: torchrun --nproc-per-node 8 examples/train_trainer.py shards ...
(on CPUs with ACCELERATE_USE_CPU=true, or each process would train a model of its own).
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, TrainingArguments

from pipeline.training import ShardDataset, WeightedCollator, WeightedTrainer, require_tokenizer

TINY = {"vocab_size": 5120, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # without --model

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--model", help="a folder or hub id (default: a tiny random Qwen3)")
parser.add_argument("--output", default="trained")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--lr", type=float, default=1e-3)
args = parser.parse_args()

torch.manual_seed(0)
if args.model:
    require_tokenizer(args.shards, args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
else:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**TINY))

trainer = WeightedTrainer(
    model=model,
    args=TrainingArguments(
        output_dir=args.output,
        max_steps=args.steps,
        learning_rate=args.lr,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,  # the loss is divided by the targets of the whole step
        remove_unused_columns=False,  # or loss_scale would be dropped
        logging_steps=1,
        report_to="none",
    ),
    train_dataset=ShardDataset(args.shards),
    processing_class=AutoTokenizer.from_pretrained(args.model) if args.model else None,
    data_collator=WeightedCollator(pad_token_id=0),  # any id: padding is masked
)
trainer.train()
trainer.save_model()
