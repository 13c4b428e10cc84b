"""Measurements; each is a command."""
