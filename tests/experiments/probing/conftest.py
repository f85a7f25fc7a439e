"""Corruptions are not compiled: that takes longer than to draw a few."""

import os

os.environ["NUMBA_DISABLE_JIT"] = "1"  # numba reads it when it is imported
