"""Judging a model: its answers to the test posts, metrics, floors, report, gate. Does not train."""
