"""What features are like: metrics that mean the same whatever loss a network was trained on."""

import torch
from torch import Tensor
from torch.nn import functional as F


def pretext_top1(a: Tensor, b: Tensor) -> Tensor:
    """Share of images in view a whose nearest embedding in view b (by cosine) is their own.

    Args:
        a: embeddings ``(B, D)`` of one view.
        b: embeddings ``(B, D)`` of the other.
    """
    similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    return (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)).float().mean()


def correlation_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The two sums of the Barlow Twins loss: Σ (C_ii − 1)², invariance, and Σ_{i≠j} C_ij², redundancy.

    C is the correlation over the batch between the dimensions of the views' embeddings ``(B, D)``
    (Zbontar et al., 2021).
    """
    a, b = (F.batch_norm(z, None, None, training=True) for z in (a, b))
    squares = (a.T @ b / len(a)).square_()  # (D, D)
    correlations = (a * b).mean(dim=0)  # (D,), the diagonal
    return (correlations - 1).square().sum(), squares.sum() - correlations.square().sum()


def largest_deviation(z: Tensor) -> Tensor:
    """Largest standard deviation over the batch of any dimension of ``(B, D)``; 0 means collapsed embeddings."""
    return z.std(dim=0, correction=0).max()


def effective_rank(features: Tensor) -> float:
    """How many directions the features ``(N, d)`` use: exp of the entropy of their normalised singular values.

    Features are centred first. Between 1 (one direction) and d (all alike); 0 if all rows are the same.
    Source: O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.
    """
    values = torch.linalg.svdvals((features - features.mean(dim=0)).double())
    if values.sum() == 0:
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


# -- how well classes are told apart, and how alike two networks' features are; all in float64 ---------------


def _class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The classes ``(C,)`` that occur, their shares ``(C,)`` and means ``(C, d)``, and each row's place among them."""
    classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, place, features)
    return classes, counts.to(features) / len(labels), sums / counts[:, None], place


def nearest_mean_top1(known: Tensor, known_labels: Tensor, features: Tensor, labels: Tensor) -> float:
    """Share, 0 … 1, of features whose nearest class mean (Euclidean) is that of their own class.

    Args:
        known: ``(N, d)``, of which the means are taken: those of training images.
        known_labels: int64 ``(N,)``. A class that does not occur here is never found.
        features: ``(M, d)``, what is classified.
        labels: int64 ``(M,)``.
    """
    centre = known.double().mean(dim=0)  # distances are differences of large numbers otherwise
    classes, _, means, _ = _class_means(known.double() - centre, known_labels)
    nearest = torch.cdist(features.double() - centre, means).argmin(dim=1)  # (M,), of distances (M, C)
    return float((classes[nearest] == labels).double().mean())


def separation_fuzziness(features: Tensor, labels: Tensor) -> float:
    """D = Tr(SS_w · SS_b⁺): how far classes spread, in the directions and units of the distances of their means.

    With class means μ_k of the features h ``(N, d)``, and their mean μ,

        SS_w = (1/N) Σ_k Σ_i (h_i − μ_k)(h_i − μ_k)ᵀ        SS_b = (1/N) Σ_k N_k (μ_k − μ)(μ_k − μ)ᵀ

    C class means span at most C − 1 directions: the pseudo-inverse is truncated to that rank explicitly, as what
    rounding adds would be inverted too, and D is Σ_i u_iᵀ SS_w u_i / λ_i over SS_b's eigenvectors and -values. 0:
    every class is one point. NaN if there is but one class, or one mean. D does not change when the
    features are turned or scaled; it does under other linear maps.
    Source: H. He, W. J. Su, "A law of data separation in deep learning", PNAS 2023 (there in end-to-end training:
    D falls by a constant factor per layer).

    Args:
        features: ``(N, d)``.
        labels: int64 ``(N,)``.
    """
    features = features.double()
    _, shares, means, place = _class_means(features, labels)
    between = shares.sqrt()[:, None] * (means - features.mean(dim=0))  # (C, d): SS_b = betweenᵀ · between
    _, values, directions = torch.linalg.svd(between, full_matrices=False)  # (r,), (r, d), r = min(C, d)
    precision = torch.finfo(values.dtype).eps * max(between.shape) * means.abs().max()
    kept = values[: len(shares) - 1] > precision
    if not kept.any():
        return float("nan")
    count = int(kept.sum())  # the values fall
    within = (features - means[place]) @ directions[:count].T  # (N, count)
    return float((within.square().mean(dim=0) / values[:count].square()).sum())


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two networks' features of the same images: 1 if alike up to turn and scale.

    HSIC(K, L) / √(HSIC(K, K) · HSIC(L, L)) of K = XXᵀ and L = YYᵀ, with the unbiased estimate of HSIC: the plain one
    rises towards 1 even for unrelated features as their dimensions outgrow the images. Between −1 and 1, about 0 for
    unrelated features; NaN if all rows of one are the same.
    Source: S. Kornblith et al., "Similarity of neural network representations revisited", ICML 2019 (CKA); L. Song et
    al., "Feature selection via dependence maximization", JMLR 2012, eq. 5 (estimate).

    Args:
        x: ``(N, d)``, N at least 4.
        y: ``(N, e)``.
    """
    k, n = [_gram_without_diagonal(z) for z in (x, y)], len(x)

    def hsic(a: Tensor, b: Tensor) -> Tensor:  # but for 1 / (n (n − 3)), which cancels
        rows_a, rows_b = a.sum(dim=1), b.sum(dim=1)
        return (a * b).sum() + rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_a @ rows_b

    return float(hsic(*k) / (hsic(k[0], k[0]) * hsic(k[1], k[1])).sqrt())


def _gram_without_diagonal(features: Tensor) -> Tensor:
    """``(N, N)``: inner products of the centred rows, which change nothing but rounding, with 0 on the diagonal."""
    centred = features.double() - features.double().mean(dim=0)
    return (centred @ centred.T).fill_diagonal_(0)
