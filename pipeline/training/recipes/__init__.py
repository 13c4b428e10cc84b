"""Modules that run inside a trainer: whole in themselves, copied into an export beside the data."""
