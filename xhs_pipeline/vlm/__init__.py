"""One checkpoint, loaded the same way everywhere: base model, processor, and the tiny model that is built here. Does not train adapters."""
