"""Conversations in, training shards out: every token carries its own loss weight."""

__version__ = "0.1.0"
