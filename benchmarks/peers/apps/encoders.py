"""CLIP without a server, for the peers that are frameworks and bring no model of their own.

Runs in a peer's environment, so it knows nothing of clipserve but the files of its exported model.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SIZE = 224
_CONTEXT = 77


class OnnxEncoder:
    """The exported graphs in ONNX Runtime with its default options."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime
        import tokenizers

        self._image, self._text = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in ("image.onnx", "text.onnx")
        )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_CONTEXT)
        self._tokenizer.enable_padding(length=_CONTEXT)

    def decode(self, picture: bytes) -> np.ndarray:
        """Picture file → pixels uint8 (224, 224, 3), shortest side resized and the middle cropped."""
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        width, height = image.size
        scale = _SIZE / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = round((image.width - _SIZE) / 2), round((image.height - _SIZE) / 2)
        return np.asarray(image.crop((left, top, left + _SIZE, top + _SIZE)))

    def images(self, pixels: list[np.ndarray]) -> np.ndarray:
        """N times pixels → features float32 (N, D)."""
        return self._image.run(None, {"pixels": np.stack(pixels)})[0]

    def texts(self, texts: list[str]) -> np.ndarray:
        """N texts → features float32 (N, D)."""
        tokens = np.array([one.ids for one in self._tokenizer.encode_batch(texts)], np.int64)
        return self._text.run(None, {"tokens": tokens})[0]


class TorchEncoder:
    """The same weights in open_clip, optionally cast to bfloat16."""

    def __init__(self, weights: Path, *, bf16: bool) -> None:
        import open_clip
        import torch

        name = weights.stem
        self._torch = torch
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        model, _, self.decode_image = open_clip.create_model_and_transforms(name, pretrained=str(weights))
        self._model = model.eval().to(self._dtype)
        self._tokenize = open_clip.get_tokenizer(name)

    def decode(self, picture: bytes) -> Any:
        """Picture file → open_clip's tensor (3, 224, 224)."""
        return self.decode_image(Image.open(io.BytesIO(picture)))

    def images(self, pixels: list[Any]) -> np.ndarray:
        """N times pixels → features float32 (N, D)."""
        with self._torch.inference_mode():
            batch = self._torch.stack(pixels).to(self._dtype)
            return self._model.encode_image(batch, normalize=True).float().numpy()

    def texts(self, texts: list[str]) -> np.ndarray:
        """N texts → features float32 (N, D)."""
        with self._torch.inference_mode():
            return self._model.encode_text(self._tokenize(texts), normalize=True).float().numpy()


def encoder(engine: str, model: Path) -> OnnxEncoder | TorchEncoder:
    """``engine`` is onnx (``model`` is the exported folder), torch or torch-bf16 (a file of weights)."""
    return OnnxEncoder(model) if engine == "onnx" else TorchEncoder(model, bf16=engine == "torch-bf16")
