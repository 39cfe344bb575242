"""The registry of models that a server has."""

from __future__ import annotations

from models.registry import ModelRegistry
from service.settings import Settings


def registry_of(settings: Settings) -> ModelRegistry:
    """The registry that these settings describe."""
    return ModelRegistry(
        settings.models_folder,
        options=settings.runtime_options(),
        max_pixels=settings.max_pixels,
        exif=settings.exif_orientation,
        fast_decode=settings.fast_decode,
    )
