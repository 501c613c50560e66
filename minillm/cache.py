"""The KV cache: keys and values of the past, kept so that a new token costs one token's work.

Chapter: cache.

Choices: one growing buffer a layer, doubled when it is full, so that appending costs the same however long the text is;
with a window the buffer is bounded and what nobody can see any more is dropped when room is needed.

Sources: Shazeer 2019 (arXiv:1911.02150), section 2.4; sliding window, Jiang et al. 2023 (Mistral, arXiv:2310.06825),
section 2.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Buffer:
    """A tensor that grows along its third axis; `append` returns what is kept, oldest first."""

    def __init__(self) -> None:
        self.data: Tensor | None = None
        self.start = self.end = 0

    def append(self, new: Float[Tensor, "B K T D"], kept: int | None = None) -> Float[Tensor, "B K S D"]:
        """Put T entries behind the newest `kept` ones, or behind all."""
        T = new.shape[2]
        if kept is not None:
            self.start = max(self.start, self.end - kept)
        if self.data is None:
            self.data = self.empty_like(new, max(T, 64))
        if self.end + T > self.data.shape[2]:
            self.data = self.moved(2 * (self.end - self.start + T))
            self.start, self.end = 0, self.end - self.start
        self.data[:, :, self.end : self.end + T] = new
        self.end += T
        return self.data[:, :, self.start : self.end]

    def moved(self, capacity: int) -> Float[Tensor, "B K S D"]:
        """What is kept, at the beginning of a larger tensor."""
        assert self.data is not None
        data = self.empty_like(self.data, capacity)
        data[:, :, : self.end - self.start] = self.data[:, :, self.start : self.end]
        return data

    @staticmethod
    @torch.inference_mode(False)  # what inference mode makes could not be written to outside of it
    def empty_like(x: Float[Tensor, "B K T D"], capacity: int) -> Float[Tensor, "B K S D"]:
        """A tensor of the same kind with room for `capacity` entries."""
        return x.new_empty(*x.shape[:2], capacity, x.shape[3])


class KVCache:
    """Keys and values of every layer, for one batch of sequences.

    With a `window`, which should be the model's, only what a next token can see is kept.
    """

    def __init__(self, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 token, not {window}")
        self.window = window
        self.length = 0
        self.keys: list[Buffer] = []
        self.values: list[Buffer] = []
        self.positions: Tensor | None = None

    def update(
        self,
        layer: int,
        k: Float[Tensor, "B K T D"],
        v: Float[Tensor, "B K T D"],
        positions: Int[Tensor, "B T"] | None,
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"], Int[Tensor, "B S"] | None]:
        """Store the newest T keys and values of a layer, return all kept, oldest first, with their positions."""
        if positions is None and self.positions is not None:
            raise ValueError("this cache holds tokens with positions; give the positions of the new tokens too")
        while layer >= len(self.keys):
            self.keys.append(Buffer())
            self.values.append(Buffer())
        kept = None if self.window is None else self.window - 1
        keys, values = self.keys[layer].append(k, kept), self.values[layer].append(v, kept)
        if layer == 0:
            self.remember(positions, k.shape[0], k.shape[2], keys.shape[2])
        return keys, values, self.positions

    def remember(self, positions: Int[Tensor, "B T"] | None, B: int, T: int, S: int) -> None:
        """Count the tokens and keep the positions of the S keys; plain positions stay None until others come."""
        if positions is not None:
            if self.positions is None:
                self.positions = torch.arange(self.length, device=positions.device).expand(B, -1)
            self.positions = torch.cat((self.positions, positions), dim=1)[:, -S:]
        self.length += T

    @property
    def n_bytes(self) -> int:
        """Memory that the buffers take."""
        buffers = [b.data for b in self.keys + self.values if b.data is not None]
        return sum(data.numel() * data.element_size() for data in buffers)
