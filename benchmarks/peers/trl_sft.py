"""What TRL's ``SFTTrainer`` does to a dataset before it trains (``assistant_only_loss``).

A model of one narrow layer stands for the real one. What the template's generation tags enclose
trains; no rules.
"""

from __future__ import annotations

from benchmarks.peers.phases import LIKE, Phases, give_up, read_arguments, require_tags  # isort: skip

try:
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer
except ImportError as absent:
    give_up(absent)

_KEPT = ("input_ids", "assistant_masks", "labels")


def main() -> None:
    """One process; saves what the trainer would train on."""
    phases, arguments = Phases(), read_arguments()
    template = arguments.template.read_text(encoding="utf-8")
    require_tags(template)
    torch.set_num_threads(1)
    phases.end("imports")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    tokenizer.chat_template = template
    rows = load_dataset("json", data_files=str(arguments.input), split="train")
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=16,
        )
    )
    phases.end("load")
    settings = SFTConfig(
        output_dir=str(arguments.output.with_suffix(".trainer")),
        assistant_only_loss=True,
        max_length=None,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    trainer = SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer)
    prepared = trainer.train_dataset
    phases.end("work")
    kept = [name for name in _KEPT if name in prepared.column_names]
    prepared.select_columns(kept).save_to_disk(arguments.output)
    phases.end("save")
    phases.tell(like=LIKE)


if __name__ == "__main__":
    main()
