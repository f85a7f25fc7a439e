"""Heads: what turns a block's features into what its loss needs."""
