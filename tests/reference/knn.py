"""The vote of the nearest neighbours, query by query."""

import math

import torch


def slow_knn(bank, labels, queries, k, temperature):
    found = []
    for query in queries:
        similarities = [
            (float(query @ row) / float(query.norm() * row.norm()), int(label), n)
            for n, (row, label) in enumerate(zip(bank, labels, strict=True))
        ]
        votes = {}
        for similarity, label, _ in sorted(similarities, key=lambda s: (-round(s[0], 6), s[1], s[2]))[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / temperature)
        found.append(min(votes, key=lambda label: (-round(votes[label], 3), label)))
    return torch.tensor(found)
