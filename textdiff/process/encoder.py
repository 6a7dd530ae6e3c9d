"""x_t = sqrt(alpha_t) F(x_0) + sqrt(beta_t) eps with a trainable F: text through Gaussian noise (Su's 编码模型, 9271).

F embeds every token and is normalised to length sqrt(D), so that its coordinates are of unit size and it cannot grow until
every x_t is readable, which the post leaves open. x_0 is text and x_t is vectors; at t = 0 the state is the text itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textdiff.keys import Key
from textdiff.posterior import Draw
from textdiff.process.base import Process
from textdiff.process.gaussian import blended, drawn_anew
from textdiff.schedule import Schedule, SquaredCosine, reaching
from textdiff.tokens import Specials, Tokens


@dataclass(frozen=True)
class Latent:
    """A batch of texts as vectors.

    tokens: what of the text is known, [MASK] where it is not. z: (B, L, D), the user's tokens without noise.
    """

    tokens: Tokens
    z: Tensor

    def to(self, device: torch.device | str) -> "Latent":
        """The same state on another device."""
        return Latent(self.tokens.to(device), self.z.to(device))

    def __getitem__(self, rows: Tensor | slice) -> "Latent":
        return Latent(self.tokens[rows], self.z[rows])

    def __len__(self) -> int:
        return len(self.tokens)


class Encoder(Process):
    """Gaussian noise on embeddings; lengths stay.

    embedding: F before it is normalised, trained with the denoiser; that model's own input embeddings, so that a checkpoint
    holds them. schedule: alpha, the share of the variance that is left.
    """

    def __init__(self, embedding: nn.Module, specials: Specials, schedule: Schedule | None = None) -> None:
        self.embedding, self.specials = embedding, specials
        self.schedule = reaching(schedule or SquaredCosine(), most=1e-3)

    def encode(self, ids: Tensor) -> Tensor:
        """F: (B, L) -> (B, L, D)."""
        vectors = self.embedding(ids)
        return nn.functional.normalize(vectors, dim=-1) * vectors.shape[-1] ** 0.5

    def noise(self, x0: Tokens, key: Key) -> Tensor:
        clean = self.encode(x0.ids)
        return key.normal(clean[0].numel()).view(clean.shape).to(clean.dtype)

    def corrupt(self, x0: Tokens, noise: Tensor, t: Tensor) -> Latent:
        if bool((x0.ids == self.specials.gap).any()):
            raise ValueError(
                "the encoder process keeps lengths, so it cannot fill [GAP]; give the length, as in [GAP:3]"
            )
        free = x0.valid & ~x0.fixed
        clean = self.encode(x0.ids)
        signal, spread = self._scales(t, clean.dtype)
        z = torch.where(free[..., None], signal * clean + spread * noise, clean)
        hidden = free & (t > 0)[:, None]
        known = x0.with_(ids=x0.ids.masked_fill(hidden, self.specials.mask), score=x0.score.masked_fill(hidden, 0.0))
        return Latent(known, z)

    def infer(self, xt: Latent, draw: Draw, t: Tensor, key: Key) -> Tensor:
        signal, spread = self._scales(t, xt.z.dtype)
        return (xt.z - signal * self.encode(draw.x0.ids)) / spread

    def align(self, x0: Tokens, noise: Tensor, t: Tensor) -> Draw:
        return Draw(x0, torch.empty(0, dtype=torch.int64), x0.score)

    def blend(self, inferred: Tensor, fresh: Tensor, rho: float | Tensor, key: Key) -> Tensor:
        return blended(inferred, fresh, rho)

    def renewed(self, t: Tensor, s: Tensor) -> Tensor:
        return drawn_anew(*(self._scales(time, torch.float64) for time in (t, s)))

    def size(self, x0: Tokens) -> Tensor:
        return x0.sizes

    def _scales(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """sqrt(alpha), sqrt(beta) at t (B,), as (B, 1, 1)."""
        signal, spread = self.schedule.alpha(t).sqrt(), self.schedule.beta(t).sqrt()
        return signal.to(dtype)[:, None, None], spread.to(dtype)[:, None, None]
