"""TRL's SFTTrainer with a weight for each token: python examples/train_trl.py shards [--model DIR]

Weights of 0 and 1 need none of this: `python -m pipeline.export shards --to trl --output DIR`.
"""

import argparse

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config
from trl import SFTConfig, SFTTrainer

from pipeline.recipe import BUNDLED
from pipeline.training import WeightedCollator, WeightedTrainer, require_tokenizer

TINY = {"vocab_size": 5120, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # without --model

parser = argparse.ArgumentParser()
parser.add_argument("shards")
parser.add_argument("--model", help="a folder or hub id (default: a tiny random Qwen3)")
parser.add_argument("--output", default="trained")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--lr", type=float, default=1e-3)
args = parser.parse_args()


class WeightedSFTTrainer(WeightedTrainer, SFTTrainer):
    """SFTTrainer's ways, our loss."""


torch.manual_seed(0)
if args.model:
    require_tokenizer(args.shards, args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model)
else:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**TINY))

trainer = WeightedSFTTrainer(
    model=model,
    processing_class=AutoTokenizer.from_pretrained(args.model or BUNDLED / "tokenizer"),
    args=SFTConfig(
        output_dir=args.output,
        max_steps=args.steps,
        learning_rate=args.lr,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        max_length=None,  # by default rows are cut to 1,024 tokens, ids and labels alone
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,  # or loss_scale would be dropped
        logging_steps=1,
        report_to="none",
        bf16=torch.cuda.is_available(),  # SFTConfig's default fails without a GPU
    ),
    train_dataset=load_dataset(args.shards, split="train"),
    data_collator=WeightedCollator(pad_token_id=0),  # any id: padding is masked
)
trainer.train()
trainer.save_model()
