"""RQ-KMeans: fits a codebook to content embeddings by residual k-means, one level after the other.

Level 1 quantises the embeddings, each further level the residuals of the one before (OneRec, 2025,
section 2.1; RQ-VAE's residual quantisation without the network). What a codebook then does with a vector is
`models/tokenizers/codebook.py`'s.

Shape letters: N items, L levels, V codebook size, E content width, K seeds, U unused codes.
"""

import faiss
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.progress import Progress, quietly
from models.tokenizers.codebook import Codebook
from models.tokenizers.config import CodebookConfig

# FAISS itself trains on at most this many points for each centroid
_MAX_POINTS_PER_CENTROID = 256

_FloatArray = npt.NDArray[np.float32]


def fit_codebook(content_NE: Tensor, config: CodebookConfig, progress: Progress = quietly) -> Codebook:
    """Fits L levels of residual k-means to float32 [N, E]; the same seed gives the same codebook.

    Raises ValueError without a vector, or for one that is not finite. With fewer distinct vectors than codes
    each has a centroid of its own, and the codes left over are scattered at random, where later items find
    them. `progress` is called after every level.
    """
    if content_NE.dim() != 2 or not len(content_NE):
        raise ValueError("a codebook needs at least one content vector")
    if not bool(torch.isfinite(content_NE).all()):
        raise ValueError("content vectors must be finite")
    random = np.random.default_rng(config.seed)
    residual_NE = np.ascontiguousarray(content_NE.to(torch.float32).numpy()).copy()
    max_points = _MAX_POINTS_PER_CENTROID * config.codebook_size
    if len(residual_NE) > max_points:
        residual_NE = residual_NE[np.sort(random.choice(len(residual_NE), max_points, replace=False))]
    centroids_LVE = np.empty((config.num_levels, config.codebook_size, content_NE.shape[1]), np.float32)
    for level in range(config.num_levels):
        centroids_LVE[level] = _fit_level(residual_NE, config, random, by_direction=level > 0)
        one_level = Codebook(torch.from_numpy(centroids_LVE[level : level + 1]))
        residual_NE = one_level.quantise(torch.from_numpy(residual_NE))[1].numpy()
        progress("fit codebook", level + 1, config.num_levels)
    return Codebook(torch.from_numpy(centroids_LVE))


def _fit_level(
    points_NE: _FloatArray, config: CodebookConfig, random: np.random.Generator, *, by_direction: bool
) -> _FloatArray:
    """V centroids, float32 [V, E]; `by_direction` gives them all one length.

    Plain k-means on residuals ends with one centroid near zero that takes in all that is near no
    other: on 12,101 MiniLM titles 6.0 to 7.0 of 8 bits were used, 87% of the prefixes were distinct
    and the error was .318. Of centroids of one length, each takes the residuals of a direction, however
    short: 7.9 bits, 89%, .305. What then shares a prefix is alike (median cosine .91).
    """
    seeds_KE = _plus_plus_seeds(points_NE, config.codebook_size, random)
    if len(seeds_KE) < config.codebook_size:
        # every distinct point is its own centroid: nothing is left to optimise
        return _scatter_unused(points_NE, seeds_KE, config.codebook_size, random)
    kmeans = faiss.Kmeans(
        points_NE.shape[1],
        config.codebook_size,
        niter=config.num_iterations,
        seed=config.seed,
        spherical=by_direction,
        min_points_per_centroid=1,  # FAISS prints a warning below 39
        max_points_per_centroid=_MAX_POINTS_PER_CENTROID,
    )
    if not by_direction:
        kmeans.train(points_NE, init_centroids=seeds_KE)
        return _centroids(kmeans)
    kmeans.train(_directions(points_NE), init_centroids=_directions(seeds_KE))
    direction_VE = _centroids(kmeans)
    # the mean projection is the length with the least squared error
    projection_N = torch.from_numpy(points_NE) @ torch.from_numpy(direction_VE).T
    return direction_VE * np.float32(projection_N.max(dim=1).values.mean())


def _centroids(kmeans: faiss.Kmeans) -> _FloatArray:
    return np.asarray(kmeans.centroids, dtype=np.float32).reshape(kmeans.k, -1)


def _directions(points_NE: _FloatArray) -> _FloatArray:
    """Each point at length 1; zeros stay zeros."""
    return torch.nn.functional.normalize(torch.from_numpy(points_NE), dim=1).numpy()


def _plus_plus_seeds(points_NE: _FloatArray, num_seeds: int, random: np.random.Generator) -> _FloatArray:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next seed is drawn by its squared distance
    to the seeds so far. Fewer come back when fewer points are distinct.

    FAISS draws seeds uniformly, which ends at a slightly larger error (.308 for .305 on 12,101 titles)
    and misses small far-off groups.
    """
    chosen = [int(random.integers(len(points_NE)))]
    distance_N = _squared_distances(points_NE, chosen[0])
    while len(chosen) < num_seeds:
        total = distance_N.sum(dtype=np.float64)
        if total <= 0.0:
            break
        cumulative_N = np.cumsum(distance_N, dtype=np.float64)
        # side="right" passes over points of distance 0: they add nothing to the sum
        pick = int(np.searchsorted(cumulative_N, random.random() * cumulative_N[-1], side="right"))
        chosen.append(pick)
        np.minimum(distance_N, _squared_distances(points_NE, pick), out=distance_N)
    return points_NE[chosen].copy()


def _squared_distances(points_NE: _FloatArray, pick: int) -> _FloatArray:
    """From each point to one of them; exactly 0 for its duplicates, which an expanded square is not."""
    difference_NE = points_NE - points_NE[pick]
    squared_N: _FloatArray = np.einsum("ne,ne->n", difference_NE, difference_NE)
    return squared_N


def _scatter_unused(
    points_NE: _FloatArray, seeds_KE: _FloatArray, num_codes: int, random: np.random.Generator
) -> _FloatArray:
    """The seeds, then random points around them, at the data's own spread (a thousandth at least)."""
    num_unused = num_codes - len(seeds_KE)
    spread = max(float(points_NE.std()), 1e-3)
    around_UE = seeds_KE[random.integers(len(seeds_KE), size=num_unused)]
    noise_UE = random.normal(scale=spread, size=around_UE.shape)
    return np.concatenate([seeds_KE, (around_UE + noise_UE).astype(np.float32)])
