"""Neuron groups: the cut across the width, and the heads of all groups at once."""
