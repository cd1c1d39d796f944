"""One checkpoint, loaded and asked the same way everywhere: base model, processor, answers by likelihood, and the tiny model built here. Does not train adapters."""
