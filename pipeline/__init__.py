"""Conversations in, training shards out: every token carries its own loss weight.

import pipeline

vocabulary = pipeline.read_vocabulary("path/to/model")
encoder = pipeline.Encoder(
    pipeline.load_tokenizer(vocabulary, certificate=pipeline.find_certificate(vocabulary)),
    pipeline.load_template(vocabulary),
    pipeline.load_rules(["ignore_empty_think"]),
    policy=pipeline.Policy(turns="fan_out"),
)
rows = encoder([{"messages": [...]}, ...])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.batch import Encoder
    from pipeline.conversation import Conversation
    from pipeline.dataset import build_dataset
    from pipeline.exporting import export_dataset
    from pipeline.policy import Policy
    from pipeline.recipe import load_template, make_recipe
    from pipeline.reweighting import reweight_dataset
    from pipeline.rules import load_rules
    from pipeline.tokens.certificate import find_certificate
    from pipeline.tokens.tokenizer import load_tokenizer
    from pipeline.tokens.vocabulary import read_vocabulary

__version__ = "0.1.0"
__all__ = [
    "Conversation",
    "Encoder",
    "Policy",
    "build_dataset",
    "export_dataset",
    "find_certificate",
    "load_rules",
    "load_template",
    "load_tokenizer",
    "make_recipe",
    "read_vocabulary",
    "reweight_dataset",
]
# Imported on first use: a command must start without what it does not need.
_ROOMS = {
    "Conversation": "conversation",
    "Encoder": "batch",
    "Policy": "policy",
    "build_dataset": "dataset",
    "export_dataset": "exporting",
    "find_certificate": "tokens.certificate",
    "load_rules": "rules",
    "load_template": "recipe",
    "load_tokenizer": "tokens.tokenizer",
    "make_recipe": "recipe",
    "read_vocabulary": "tokens.vocabulary",
    "reweight_dataset": "reweighting",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
