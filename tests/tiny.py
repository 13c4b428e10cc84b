"""A model small enough to train in a test, and its gradient as an optimizer sees it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline.recipe import BUNDLED

# Two test processes share two cores: more threads took 83 s where one each takes 34.
torch.set_num_threads(1)

VOCABULARY = 5120  # at least the embedded tokenizer's


def make_model(seed: int = 0, **changes: Any) -> Any:
    """A random Qwen3 of two layers, the same for the same seed; eager attention, float32."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "initializer_range": 0.2,  # logits far enough apart for a mistake to show
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        **changes,
    }
    return Qwen3ForCausalLM(Qwen3Config(**settings))


def load_tokenizer() -> Any:
    """The embedded tokenizer as trainers want one."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(BUNDLED / "tokenizer" / "tokenizer.json"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


class Recorder(torch.optim.SGD):  # type: ignore[misc] # torch's types are not read
    """Keeps the gradients of each step, and the model as it is."""

    def __init__(self, model: Any) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.seen: list[dict[str, Any]] = []
        super().__init__(list(model.parameters()), lr=0.0)

    def step(self, closure: Any = None) -> None:  # noqa: ARG002 - as optimizers have it
        """Nothing is learnt."""
        parameters = self.param_groups[0]["params"]
        self.seen.append(
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
                for name, p in zip(self.names, parameters, strict=True)
            }
        )


def gradient_of(model: Any) -> dict[str, Any]:
    """Of each parameter, after ``backward``."""
    return {name: p.grad.detach().clone() for name, p in model.named_parameters()}


def greatest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between two gradients, as a share of the largest number in them."""
    assert one.keys() == other.keys()
    most = max(float(g.abs().max()) for g in one.values())
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one) / most
