"""Turning raw posts into clean, unique ones: text, identifiers, images, duplicates. Does not read sources and does not split."""
