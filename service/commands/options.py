"""What several commands share: how they find and load a model."""

from __future__ import annotations

from models.registry import LoadedModel, ModelRegistry
from service.settings import Settings


def registry_of(settings: Settings) -> ModelRegistry:
    """The registry that the server would have with these settings."""
    return ModelRegistry(
        settings.models_folder,
        options=settings.runtime_options(),
        max_pixels=settings.max_pixels,
        exif=settings.exif_orientation,
    )


def load_model(settings: Settings, name: str | None) -> LoadedModel:
    """A model by name, or the server's default one, ready to encode."""
    return registry_of(settings).load(name or settings.models[0])
