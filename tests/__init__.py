"""Tests; run with ``pytest`` from the project's root."""
