"""From unique posts to train / validation / calibration / test conversations. Does not clean and does not tokenise."""
