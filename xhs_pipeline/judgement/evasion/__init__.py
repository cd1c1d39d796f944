"""Disguised posts: how they are made, and how well a model holds out against them."""
