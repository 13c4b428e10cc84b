"""What can go wrong, in one tree; every message reads *place: fact; remedy*.

WeightedShardsError
├── ConfigurationError      flags, rule files, templates, tokenizers: exit 1
│   ├── RuleError           a rule file does not say what it must
│   ├── TemplateError       a chat template cannot be found or compiled
│   └── TokenizerError      a tokenizer cannot be found or used
├── InputError              a whole input cannot be read: exit 1
├── BuildError              shards cannot be written, or do not match: exit 1
├── EngineMismatch          two encoding engines disagree: the build starts anew with the reference
└── RecordError             one record is bad: it becomes a reject, the build goes on
"""

from __future__ import annotations


class WeightedShardsError(Exception):
    """Root of all errors that are not bugs."""


class ConfigurationError(WeightedShardsError):
    """A flag, or a file that a flag names, is wrong."""


class RuleError(ConfigurationError):
    """A rule file is wrong."""


class TemplateError(ConfigurationError):
    """A chat template is missing or does not compile."""


class TokenizerError(ConfigurationError):
    """A tokenizer is missing or cannot be used."""


class InputError(WeightedShardsError):
    """An input is missing, or cannot be read as what it claims to be."""


class BuildError(WeightedShardsError):
    """The output folder does not allow what was asked."""


class EngineMismatch(WeightedShardsError):  # noqa: N818 - a fact found, not a fault
    """The fast engine gave other ids than the reference for one document."""


class RecordError(WeightedShardsError):
    """One record is bad; ``str(error)`` is ``field: fact; remedy`` (the caller knows the place).

    *stage* is the step that found it (``read parse render encode weigh``), *reason* a short code
    that is counted (``bad_json``, ``unknown_role``, ...), *field* a path such as
    ``messages[2].content`` or empty for the whole record.
    """

    def __init__(self, stage: str, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.stage, self.reason, self.field, self.message = stage, reason, field, message

    def __reduce__(self) -> tuple[object, ...]:
        # Exception.__reduce__ would call __init__ with the joined text alone.
        return (_record_error, (self.stage, self.reason, self.message, self.field))


def _record_error(stage: str, reason: str, message: str, field: str) -> RecordError:
    return RecordError(stage, reason, message, field=field)
