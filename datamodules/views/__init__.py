"""Pairs of random views of images, for self-supervised losses."""
