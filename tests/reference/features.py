"""What features are like, as the papers write it."""

import numpy as np
import torch


def direct_fuzziness(features, labels):
    """The definition, with numpy's pseudo-inverse of the full matrix."""
    h, y = features.numpy(), labels.numpy()
    mean, within, between = h.mean(0), 0, 0
    for k in np.unique(y):
        rows = h[y == k]
        within = within + (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(h)
        between = between + len(rows) / len(h) * np.outer(rows.mean(0) - mean, rows.mean(0) - mean)
    return np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True))


def slow_hsic(x, y):
    """Song et al., 2012, eq. 5, term by term."""
    n, of_x, of_y = len(x), x @ x.T, y @ y.T
    of_x.fill_diagonal_(0)
    of_y.fill_diagonal_(0)
    one = torch.ones(n, 1, dtype=x.dtype)
    cross = (one.T @ of_x @ one) * (one.T @ of_y @ one) / ((n - 1) * (n - 2))
    return (torch.trace(of_x @ of_y) + cross - 2 / (n - 2) * one.T @ of_x @ of_y @ one).item() / (n * (n - 3))
