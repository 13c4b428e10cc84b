"""``datasets.map`` over ``apply_chat_template``, as the documentation of transformers has it.

What the template's generation tags enclose trains; no rules.
"""

from __future__ import annotations

from benchmarks.peers.phases import LIKE, Phases, give_up, read_arguments, require_tags  # isort: skip

from typing import Any

try:
    from datasets import load_dataset
    from transformers import AutoTokenizer
except ImportError as absent:
    give_up(absent)


def main() -> None:
    """One process, conversation by conversation."""
    phases, arguments = Phases(), read_arguments()
    template = arguments.template.read_text(encoding="utf-8")
    require_tags(template)
    phases.end("imports")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    rows = load_dataset("json", data_files=str(arguments.input), split="train")
    phases.end("load")

    def encode(record: dict[str, Any]) -> dict[str, Any]:
        found = tokenizer.apply_chat_template(
            record["messages"],
            tools=record.get("tools"),
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {name: found[name] for name in ("input_ids", "assistant_masks")}

    encoded = rows.map(encode, remove_columns=rows.column_names)
    phases.end("work")
    encoded.save_to_disk(arguments.output)
    phases.end("save")
    phases.tell(like=LIKE)


if __name__ == "__main__":
    main()
