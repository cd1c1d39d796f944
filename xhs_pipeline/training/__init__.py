"""Training the adapter and merging it. Does not judge the result."""
