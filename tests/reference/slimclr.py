"""One step of SlimCLR, image by image, with plain networks in place of slimmable ones."""

import math

import torch


def cosine(a, b):
    return (a / a.norm()) @ (b / b.norm())


def log_softmax(row, temperature):
    row = [entry / temperature for entry in row]
    total = torch.stack([entry.exp() for entry in row]).sum().log()
    return [entry - total for entry in row]


def rows_with_queue(z, keys, queue):
    """Of each image the cosine with its key, then those with the queue's keys."""
    return [[cosine(q, k), *(cosine(q, other) for other in queue)] for q, k in zip(z, keys, strict=True)]


def rows_of_pairs(a, b):
    """Of each view the cosine with the other one of its image, then those with all other views."""
    views = [*a, *b]
    rows = []
    for i, z in enumerate(views):
        partner = (i + len(a)) % len(views)
        others = [other for j, other in enumerate(views) if j not in (i, partner)]
        rows.append([cosine(z, views[partner]), *(cosine(z, other) for other in others)])
    return rows


def contrastive(rows, temperature):
    return -torch.stack([log_softmax(row, temperature)[0] for row in rows]).mean()


def distance(rows, teachers, temperature):
    found = []
    for row, teacher in zip(rows, teachers, strict=True):
        p = [entry.detach().exp() for entry in log_softmax(teacher, temperature)]
        found.append(-sum(share * entry for share, entry in zip(p, log_softmax(row, temperature), strict=True)))
    return torch.stack(found).mean()


def step_loss(rows_of_widths, temperature, alpha, tau):
    """Σ λ_w L_w; λ of the whole network is 1 and the other widths together, the others' is 1.

    Args:
        rows_of_widths: width → rows of cosines, the positive first.
        temperature: T.
        alpha: share of the distillation.
        tau: its temperature.
    """
    total = (1 + math.fsum(width for width in rows_of_widths if width < 1)) * contrastive(
        rows_of_widths[1.0], temperature
    )
    for width, rows in rows_of_widths.items():
        if width < 1:
            far = tau**2 * distance(rows, rows_of_widths[1.0], tau)
            total = total + (1 - alpha) * contrastive(rows, temperature) + alpha * far
    return total
