"""The backbone: a Vision Transformer that takes one batch of images or a list of batches of several sizes.

Legend: B images, C channels, N patches, R registers, D width; `sizes` lists (B_i, 1 + R + N_i) as in attention.py.
"""

from collections.abc import Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from franca.models.attention import Sizes, split_by_size
from franca.models.block import Block, LayerScale
from franca.models.features import Features, Masks, as_lists
from franca.models.feed_forward import FEED_FORWARDS
from franca.models.patch_embed import PatchEmbed
from franca.models.position_embedding import resample_positions
from franca.models.rasa_head import RASAHead


class VisionTransformer(nn.Module):
    """Vision Transformer with a class token, learned positions and optional registers.

    Two things may be attached to a trained one, and are None otherwise: `rasa_head`, which adds debiased patch features
    beside the others (`use_rasa_head=True`), and `patch_map`, a linear map (D -> D) of the last block's patch tokens
    after the last norm, into which such a head was folded.

    Args:
        img_size: side in pixels of the square image whose patch grid the positions are stored for.
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        embed_dim: width D of the tokens, a multiple of `num_heads`.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward network over D, before SwiGLU's factor of two thirds.
        ffn: "swiglu" or "mlp".
        init_values: start value of LayerScale, above 0.
        num_register_tokens: registers R (Darcet et al. 2024), placed between class token and patches.
        drop_path_rate: stochastic depth in training, in [0, 1), the same rate in every block.
        interpolate_offset: added to the target grid when positions are resampled, in [0, 1); see `resample_positions`.
        interpolate_antialias: whether that resampling filters when it shrinks.

    Raises:
        ValueError: for an argument outside the ranges above.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 14,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        ffn: str = "swiglu",
        init_values: float = 1e-5,
        num_register_tokens: int = 0,
        drop_path_rate: float = 0.0,
        interpolate_offset: float = 0.1,
        interpolate_antialias: bool = False,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        _check(config)
        self.config: dict[str, Any] = config
        self.embed_dim, self.patch_size, self.num_heads, self.in_chans = embed_dim, patch_size, num_heads, in_chans
        self.num_register_tokens = num_register_tokens
        self.interpolate_offset, self.interpolate_antialias = interpolate_offset, interpolate_antialias
        self.grid = img_size // patch_size

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, embed_dim))
        registers = torch.empty(1, num_register_tokens, embed_dim)
        self.register_tokens = nn.Parameter(registers) if num_register_tokens else None
        self.mask_token = nn.Parameter(torch.empty(1, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        hidden = int(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, hidden, ffn, init_values, drop_path_rate) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.rasa_head: RASAHead | None = None
        self.patch_map: nn.Linear | None = None
        self.init_weights()

    def init_weights(self) -> None:
        """Set every parameter to its start value, whatever was allocated (DINOv2's conventions)."""
        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=1e-6)
        nn.init.zeros_(self.mask_token)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.LayerNorm | LayerScale):
                module.reset_parameters()

    @overload
    def forward_features(
        self, images: Tensor, masks: Tensor | None = None, use_rasa_head: bool = False
    ) -> Features: ...
    @overload
    def forward_features(
        self, images: Sequence[Tensor], masks: Masks | None = None, use_rasa_head: bool = False
    ) -> list[Features]: ...
    def forward_features(
        self, images: Tensor | Sequence[Tensor], masks: Tensor | Masks | None = None, use_rasa_head: bool = False
    ) -> Features | list[Features]:
        """Features of images (B, C, H, W), or of a list of such batches, each of its own size.

        Args:
            images: a batch, or a list of batches.
            masks: (B, N) bool, True where the mask token replaces a patch; for a list, a list that may hold None.
            use_rasa_head: add `patch_token_rasa`, the patch tokens without position (paper Sec. 2.3).

        Raises:
            ValueError: for image sizes that the patch does not divide, masks that are not (B, N) bool, or
                `use_rasa_head` without a head.
        """
        features = self._features(*as_lists(images, masks))
        if use_rasa_head:
            head = self._rasa_head()
            for batch in features:
                batch["patch_token_rasa"] = head(batch["x_norm_patchtokens"])
        return features[0] if isinstance(images, Tensor) else features

    @overload
    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(self, images: Sequence[Tensor], masks: Masks | None = None) -> list[Tensor]: ...
    def forward(self, images: Tensor | Sequence[Tensor], masks: Tensor | Masks | None = None) -> Tensor | list[Tensor]:
        """Class tokens (B, D) after the last norm; one per batch for a list. Arguments as `forward_features`."""
        tokens = [features["x_norm_clstoken"] for features in self._features(*as_lists(images, masks))]
        return tokens[0] if isinstance(images, Tensor) else tokens

    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Any, ...]:
        """Patch tokens after chosen blocks, in the order of the blocks.

        Args:
            images: (B, C, H, W).
            n: the last n blocks, or a list of block numbers from 0.
            reshape: (B, D, h, w) instead of (B, N, D).
            return_class_token: pairs (patches, class token (B, D)) instead of patches.
            norm: apply the last norm, and to the last block's patches also `patch_map` where there is one.

        Raises:
            ValueError: if `n` asks for a block that does not exist.
        """
        grid = self.patch_embed.grid(images)
        results = []
        numbers = self._block_numbers(n)
        for number, tokens in zip(sorted(set(numbers)), self._block_outputs(images, numbers), strict=True):
            tokens = self.norm(tokens) if norm else tokens
            patches = tokens[:, 1 + self.num_register_tokens :]
            if norm and number == len(self.blocks) - 1:
                patches = self._mapped(patches)
            if reshape:
                patches = patches.transpose(1, 2).unflatten(2, grid).contiguous()
            results.append((patches, tokens[:, 0]) if return_class_token else patches)
        return tuple(results)

    def attention_maps(self, images: Tensor) -> Tensor:
        """Attention weights of the last block for images (B, C, H, W): (B, heads, T, T) with T = 1 + R + N."""
        tokens, sizes = self._embed([images], [None])
        for block in self.blocks[:-1]:
            tokens = block(tokens, sizes)
        return cast(Block, self.blocks[-1]).attention_maps(tokens, sizes)[0]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embedding for a patch grid (h, w): (1, 1 + h * w, D), the class token's first."""
        return resample_positions(self.pos_embed, grid, self.interpolate_offset, self.interpolate_antialias)

    def set_resolution(self, img_size: int) -> None:
        """Store the positions for square images of `img_size` pixels, resampled as the forward pass does it.

        Features at that size stay what they were; at others they may change a little. For fine-tuning: `pos_embed`
        becomes a new parameter, so an optimizer must be built afterwards.

        Raises:
            ValueError: if `img_size` is not a multiple of the patch.
        """
        config = self.config | {"img_size": img_size}
        _check(config)
        grid = img_size // self.patch_size
        if grid != self.grid:
            positions = self.positions((grid, grid)).detach().clone()
            self.pos_embed = nn.Parameter(positions, requires_grad=self.pos_embed.requires_grad)
            self.grid, self.config = grid, config

    def _features(self, images: Sequence[Tensor], masks: Masks) -> list[Features]:
        tokens, sizes = self._embed(images, masks)
        for block in self.blocks:
            tokens = block(tokens, sizes)
        batches = zip(split_by_size(self.norm(tokens), sizes), split_by_size(tokens, sizes), masks, strict=True)
        first = 1 + self.num_register_tokens
        return [
            Features(
                x_norm_clstoken=normed[:, 0],
                x_norm_regtokens=normed[:, 1:first],
                x_norm_patchtokens=self._mapped(normed[:, first:]),
                x_prenorm=prenorm,
                masks=mask,
            )
            for normed, prenorm, mask in batches
        ]

    def _mapped(self, patches: Tensor) -> Tensor:
        """The last block's patch tokens after the norm -> what the model returns of them."""
        return patches if self.patch_map is None else self.patch_map(patches)

    def _rasa_head(self) -> RASAHead:
        if self.rasa_head is not None:
            return self.rasa_head
        if self.patch_map is not None:
            raise ValueError("use_rasa_head=True: RASA is folded into this model, x_norm_patchtokens hold no position")
        raise ValueError(
            "use_rasa_head=True, but no RASA head is attached: load the model with use_rasa_head=True, train one with "
            "python -m rasa.train, or set model.rasa_head"
        )

    def _embed(self, images: Sequence[Tensor], masks: Masks) -> tuple[Tensor, Sizes]:
        """Batches of images -> the flat sequence (T, D) and its sizes."""
        batches = [self._prepare(batch, mask) for batch, mask in zip(images, masks, strict=True)]
        # Copied even when there is one batch: blocks compile once for a tensor, and again for a view of another.
        tokens = torch.cat([batch.flatten(0, 1) for batch in batches])
        return tokens, [(len(batch), batch.shape[1]) for batch in batches]

    def _prepare(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """(B, C, H, W) -> (B, 1 + R + N, D): patches, mask token, class token, positions, then registers."""
        grid = self.patch_embed.grid(images)
        patches = self.patch_embed(images)
        if masks is not None:
            if masks.shape != patches.shape[:2] or masks.dtype != torch.bool:
                raise ValueError(
                    f"masks of shape {tuple(masks.shape)} and {masks.dtype}; these images need (B, N) = "
                    f"{tuple(patches.shape[:2])}, torch.bool"
                )
            patches = torch.where(masks[..., None], self.mask_token.to(patches.dtype), patches)
        positions = self.positions(grid)
        first = [(self.cls_token + positions[:, :1]).expand(len(images), -1, -1)]
        if self.register_tokens is not None:
            first.append(self.register_tokens.expand(len(images), -1, -1))
        return torch.cat([*first, patches + positions[:, 1:]], dim=1)

    def _block_numbers(self, n: int | Sequence[int]) -> list[int]:
        depth = len(self.blocks)
        numbers = list(range(depth - n, depth)) if isinstance(n, int) else list(n)
        if not numbers or min(numbers) < 0 or max(numbers) >= depth:
            raise ValueError(f"n={n} asks for blocks outside 0..{depth - 1}; this model has {depth} blocks")
        return numbers

    def _block_outputs(self, images: Tensor, numbers: list[int]) -> list[Tensor]:
        tokens, sizes = self._embed([images], [None])
        outputs = []
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, sizes)
            if number in numbers:
                outputs += split_by_size(tokens, sizes)
        return outputs


def _check(config: dict[str, Any]) -> None:
    """Refuse arguments of `VisionTransformer` that make no network."""
    for name in ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"{name}={config[name]!r} must be a whole number above 0")
    if config["img_size"] % config["patch_size"]:
        raise ValueError(f"img_size={config['img_size']} is not a multiple of patch_size={config['patch_size']}")
    if config["embed_dim"] % config["num_heads"]:
        raise ValueError(f"embed_dim={config['embed_dim']} is not a multiple of num_heads={config['num_heads']}")
    if config["ffn"] not in FEED_FORWARDS:
        raise ValueError(f"ffn={config['ffn']!r} is unknown; choose from {sorted(FEED_FORWARDS)}")
    for name in ("drop_path_rate", "interpolate_offset"):
        if not 0 <= config[name] < 1:
            raise ValueError(f"{name}={config[name]} must lie in [0, 1)")
    if not config["init_values"] or config["init_values"] < 0:
        raise ValueError(f"init_values={config['init_values']} must be above 0: at 0 blocks change nothing")
    if config["num_register_tokens"] < 0:
        raise ValueError(f"num_register_tokens={config['num_register_tokens']} must not be negative")
    if config["mlp_ratio"] <= 0:
        raise ValueError(f"mlp_ratio={config['mlp_ratio']} must be above 0")
