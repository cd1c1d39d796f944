"""Appeals as append-only events, what was decided, and when that is enough to retrain. Does not train."""
