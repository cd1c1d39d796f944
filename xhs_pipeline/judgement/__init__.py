"""Scoring posts with a model and judging the model: probabilities, metrics, floors, report, gate. Does not train."""
