"""What shards were made with, held against what they are to train."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path

from pipeline.errors import ConfigurationError
from pipeline.lineage import read_finished
from pipeline.tokens.vocabulary import TOKENIZER, read_vocabulary


def require_tokenizer(shards: str | PathLike[str], tokenizer: str | PathLike[str]) -> None:
    """ConfigurationError where *tokenizer* (a folder or hub id) is not the one of the build.

    Another one's ids train without a word, as long as the model's vocabulary is large enough. Files
    are compared, so a copy that was saved anew is another one: name what the build's --tokenizer
    named. Raises TokenizerError where there is none, BuildError where *shards* is no finished
    build.
    """
    told = read_finished(Path(shards)).parts["tokenizer"].get(TOKENIZER)
    found = read_vocabulary(fspath(tokenizer)).digests[TOKENIZER]
    if told != found:
        raise ConfigurationError(
            f"{shards}: made with another {TOKENIZER} ({told!s:.12}...) than that of {tokenizer} "
            f"({found:.12}...), whose ids mean something else; build with --tokenizer {tokenizer}"
        )
