"""RQ-VAE: semantic IDs by residual quantisation in a learned latent space, as TIGER makes them.

Rajput et al., "Recommender systems with generative retrieval" (NeurIPS 2023), section 3.1, on the residual
quantiser of Zeghidour et al. (2021): an MLP encoder, L codebooks over the residuals of its latent, an MLP
decoder, straight-through gradients. The codebooks follow their members by moving averages, start at k-means
centroids, and a code that nothing uses is put onto a random residual. The first steps train the MLPs alone:
codes placed in the latents of random weights are left behind when the weights move.

It knows vectors and codes. Headrace's own tokens (`models/tokenizers/rq_kmeans.py`) need no network.

Shapes: N items, B batch, L levels, V codes of a level, E content width, Z latent width.
"""

from dataclasses import dataclass
from itertools import pairwise

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from models.progress import Progress, quietly

_CHUNK = 8_192
_KMEANS_ITERATIONS = 10


@dataclass(frozen=True, kw_only=True)
class RqVaeConfig:
    """TIGER's sizes: latent 32, hidden 512, 256 and 128, three levels of 256 codes, commitment .25.

    A code is dead when its members are fewer than `dead_below` of an equal share. `warmup_share` of the
    steps come before the quantiser.
    """

    num_levels: int = 3
    codebook_size: int = 256
    latent_dim: int = 32
    hidden_dims: tuple[int, ...] = (512, 256, 128)
    commitment: float = 0.25
    ema_decay: float = 0.97
    dead_below: float = 0.1
    warmup_share: float = 0.2
    num_steps: int = 3_000
    batch_size: int = 1_024
    learning_rate: float = 1e-3
    seed: int = 0


class RqVae(nn.Module):
    """The network and its codebooks: a `models.tokenizers.base.Tokenizer`."""

    code_LVZ: Tensor
    count_LV: Tensor
    sum_LVZ: Tensor

    def __init__(self, content_dim: int, config: RqVaeConfig) -> None:
        super().__init__()
        self.config = config
        self.content_dim = content_dim
        widths = (content_dim, *config.hidden_dims, config.latent_dim)
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        shape = (config.num_levels, config.codebook_size, config.latent_dim)
        self.register_buffer("code_LVZ", torch.zeros(shape))
        self.register_buffer("count_LV", torch.ones(shape[:2]))
        self.register_buffer("sum_LVZ", torch.zeros(shape))

    @property
    def num_levels(self) -> int:
        """L."""
        return self.config.num_levels

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.config.codebook_size

    @torch.no_grad()
    def encode(self, content_NE: Tensor) -> Tensor:
        """The codes int64 [N, L] of float32 [N, E], the nearest of each level; ValueError for another E."""
        if content_NE.dim() != 2 or content_NE.shape[1] != self.content_dim:
            raise ValueError(f"content of shape {tuple(content_NE.shape)}, expected (N, {self.content_dim})")
        return self.quantise(self._latent(content_NE))[0]

    @torch.no_grad()
    def quantise(self, latent_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [B, L] of float32 latents, and what each level quantised, float32 [L, B, Z]."""
        residual_BZ, codes, residuals = latent_BZ.detach(), [], []
        for code_VZ in self.code_LVZ:
            residuals.append(residual_BZ)
            square_V = code_VZ.square().sum(1)
            codes.append(torch.addmm(square_V, residual_BZ, code_VZ.T, alpha=-2.0).argmin(1))
            residual_BZ = residual_BZ - code_VZ[codes[-1]]
        return torch.stack(codes, dim=1), torch.stack(residuals)

    def quantised(self, codes_BL: Tensor) -> Tensor:
        """The latent that int64 codes stand for: the sum over the levels, float32 [B, Z]."""
        levels_L = torch.arange(self.config.num_levels)
        return self.code_LVZ[levels_L, codes_BL].sum(1)

    def loss(self, content_BE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared error of reconstruction + commitment (a mean over B, float32), and what `quantise` gave.

        Of float32 content. Gradients pass the quantiser as if it were not there; the commitment draws each
        level's residual to its code.
        """
        latent_BZ = self.encoder(content_BE)
        codes_BL, residual_LBZ = self.quantise(latent_BZ)
        quantised_BZ = self.quantised(codes_BL)
        straight_BZ = latent_BZ + (quantised_BZ - latent_BZ).detach()
        error = (self.decoder(straight_BZ) - content_BE).square().sum(1).mean()
        commitment, left_BZ = error.new_zeros(()), latent_BZ
        for level in range(self.config.num_levels):
            code_BZ = self.code_LVZ[level, codes_BL[:, level]]
            commitment = commitment + (left_BZ - code_BZ).square().sum(1).mean()
            left_BZ = left_BZ - code_BZ
        return error + self.config.commitment * commitment, codes_BL, residual_LBZ

    @torch.no_grad()
    def start_codes(self, content_NE: Tensor) -> None:
        """Puts each level's codes at the k-means centroids of what that level is given of float32 [N, E]."""
        residual_NZ = self._latent(content_NE)
        for level in range(self.config.num_levels):
            code_VZ = _kmeans(residual_NZ, self.config.codebook_size, self.config.seed)
            self.code_LVZ[level] = code_VZ
            residual_NZ = residual_NZ - code_VZ[torch.cdist(residual_NZ, code_VZ).argmin(1)]
        share = self.config.batch_size / self.config.codebook_size
        self.sum_LVZ.copy_(self.code_LVZ * share)
        self.count_LV.fill_(share)

    def _latent(self, content_NE: Tensor) -> Tensor:
        """The encoder's output, a part at a time: hidden layers are wider than what they end in."""
        starts = range(0, max(1, len(content_NE)), _CHUNK)
        return torch.cat([self.encoder(content_NE[start : start + _CHUNK]) for start in starts])

    @torch.no_grad()
    def follow(self, codes_BL: Tensor, residual_LBZ: Tensor, generator: torch.Generator) -> None:
        """Moves each code to the moving average of its members, and dead codes onto random residuals.

        Takes what `quantise` gave: codes int64 [B, L], residuals float32 [L, B, Z].
        """
        decay = self.config.ema_decay
        for level, residual_BZ in enumerate(residual_LBZ):
            code_B = codes_BL[:, level]
            count_V = torch.bincount(code_B, minlength=self.config.codebook_size).float()
            self.count_LV[level].lerp_(count_V, 1.0 - decay)
            sum_VZ = torch.zeros_like(self.sum_LVZ[level]).index_add_(0, code_B, residual_BZ)
            self.sum_LVZ[level].lerp_(sum_VZ, 1.0 - decay)
            dead_V = self.count_LV[level] < self.config.dead_below * len(code_B) / self.config.codebook_size
            pick_V = torch.randint(len(residual_BZ), (int(dead_V.sum()),), generator=generator)
            self.sum_LVZ[level][dead_V] = residual_BZ[pick_V]
            self.count_LV[level][dead_V] = 1.0
            self.code_LVZ[level] = self.sum_LVZ[level] / self.count_LV[level][:, None]


def fit_rq_vae(content_NE: Tensor, config: RqVaeConfig, progress: Progress = quietly) -> RqVae:
    """Trains on float32 [N, E]; the same seed and thread count give the same codes.

    The global random state is left as it was. Raises ValueError without vectors.
    """
    if content_NE.dim() != 2 or not len(content_NE):
        raise ValueError("an RQ-VAE needs at least one content vector")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = RqVae(content_NE.shape[1], config)
    num_warmup = int(config.warmup_share * config.num_steps)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    for step in range(config.num_steps):
        batch_B = torch.randint(
            len(content_NE), (min(config.batch_size, len(content_NE)),), generator=generator
        )
        if step == num_warmup:
            model.start_codes(content_NE)
        optimiser.zero_grad()
        if step < num_warmup:
            content_BE = content_NE[batch_B]
            loss = (model.decoder(model.encoder(content_BE)) - content_BE).square().sum(1).mean()
            loss.backward()
            optimiser.step()
        else:
            loss, codes_BL, residual_LBZ = model.loss(content_NE[batch_B])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            model.follow(codes_BL, residual_LBZ, generator)
        progress("fit RQ-VAE", step + 1, config.num_steps)
    return model.eval()


def with_last_code(codes_NL: Tensor, *, seed: int) -> Tensor:
    """The codes and one more that tells items with the same ones apart, int64 [N, L + 1].

    It numbers the items of a group 0, 1, ... in random order, so that it says nothing about them (TIGER,
    section 3.1); an item alone under its codes has 0.
    """
    random = np.random.default_rng(seed)
    order_N = random.permutation(len(codes_NL))
    _, group_N = np.unique(codes_NL.numpy()[order_N], axis=0, return_inverse=True)
    by_group_N = np.argsort(group_N.ravel(), kind="stable")
    sorted_N = group_N.ravel()[by_group_N]
    place_N = np.arange(len(sorted_N)) - np.searchsorted(sorted_N, sorted_N)
    last_N = np.empty(len(sorted_N), dtype=np.int64)
    last_N[order_N[by_group_N]] = place_N
    return torch.cat([codes_NL, torch.from_numpy(last_N)[:, None]], dim=1)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _kmeans(points_NZ: Tensor, num_codes: int, seed: int) -> Tensor:
    """float32 [V, Z]; with fewer points than codes, the points and noise around them."""
    points = np.ascontiguousarray(points_NZ.numpy(), dtype=np.float32)
    if len(points) <= num_codes:
        random = np.random.default_rng(seed)
        around = points[random.integers(len(points), size=num_codes - len(points))]
        spread = max(float(points.std()), 1e-3)
        noise = random.normal(scale=spread, size=around.shape).astype(np.float32)
        return torch.from_numpy(np.concatenate([points, around + noise]))
    kmeans = faiss.Kmeans(
        points.shape[1], num_codes, niter=_KMEANS_ITERATIONS, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(points)
    return torch.from_numpy(np.asarray(kmeans.centroids, dtype=np.float32).reshape(num_codes, -1))
