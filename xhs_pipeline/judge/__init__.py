"""Judging a file of posts from the command line: read, cleaned, asked, decided and written, going on where it was cut off."""
