"""The image state: pixels, and what the user says they show."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """A batch of images.

    pixels: (B, C, H, W) floating point, data in [-1, 1].
    label: (B,) int64, the class each image is of; -1 where there is none. It is the user's: no process corrupts it.
    """

    pixels: Tensor
    label: Tensor

    @classmethod
    def of(cls, pixels: Tensor, label: Tensor | None = None) -> "Images":
        """Images without labels, unless they are given. ValueError for pixels that are no batch in [-1, 1]."""
        if pixels.dim() != 4:
            raise ValueError(f"pixels of shape {tuple(pixels.shape)} are no batch of images; give (B, C, H, W)")
        if not pixels.is_floating_point() or not bool(pixels.abs().max() <= 1.0001 if pixels.numel() else True):
            raise ValueError(f"pixels of {pixels.dtype} up to {float(pixels.max()):g} are not in [-1, 1]; scale them")
        return cls(pixels, torch.full((len(pixels),), -1, device=pixels.device) if label is None else label)

    def with_(self, pixels: Tensor) -> "Images":
        """The same labels on other pixels."""
        return replace(self, pixels=pixels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on another device."""
        return Images(self.pixels.to(device), self.label.to(device))

    def __getitem__(self, rows: Tensor | slice) -> "Images":
        return Images(self.pixels[rows], self.label[rows])

    def __len__(self) -> int:
        return len(self.pixels)
