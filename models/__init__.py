"""Ways to train a network block by block: the loop (``local_learning.py``), and one file per method in ``methods/``.

Plain torch is in ``networks/``, which imports no Lightning; so names are looked up here when they are asked for.
"""

from models.networks.by_name import by_name

__getattr__, __dir__ = by_name(__name__, __path__, apart="models.networks")
