"""open_clip itself, asked for what the exported files are compared with. Only the export imports this."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ExportError
from models.manifest import ImageSpec
from models.towers import reason

_BATCH = 4


class Reference:
    """``model``'s own features, through open_clip's own preprocessing.

    Where the model carries the preprocessing it was trained with, that decides, and ``image`` otherwise.
    Encoding raises ``ExportError`` where open_clip cannot run the model itself.
    """

    def __init__(self, model: nn.Module, image: ImageSpec) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._model: Any = model
        own: dict[str, Any] | None = getattr(model.visual, "preprocess_cfg", None)
        chosen = own or {
            "size": image.size,
            "mean": image.mean,
            "std": image.std,
            "interpolation": image.interpolation,
            "resize_mode": image.resize,
            "fill_color": image.fill,
        }
        self._transform = image_transform_v2(PreprocessCfg(**chosen), is_train=False)

    def preprocess(self, pictures: Sequence[bytes]) -> Tensor:
        """N encoded pictures → float32 (N, 3, H, W), normalised."""
        return torch.stack([self._transform(Image.open(io.BytesIO(picture))) for picture in pictures])

    def encode_images(self, images: Tensor) -> NDArray[np.float32]:
        """What ``preprocess`` gave → features float32 (N, D), L2-normalised."""
        return self._encode(self._model.encode_image, images)

    def encode_texts(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids int64 (N, context_length) → features float32 (N, D), L2-normalised."""
        return self._encode(self._model.encode_text, torch.from_numpy(tokens))

    def _encode(self, encoder: Any, items: Tensor) -> NDArray[np.float32]:
        try:
            with torch.inference_mode():
                parts = [functional.normalize(encoder(part), dim=-1) for part in torch.split(items, _BATCH)]
        except Exception as error:  # a model may be described that open_clip can build and not run
            raise ExportError(f"open_clip itself cannot run this model: {reason(error)}") from error
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features
