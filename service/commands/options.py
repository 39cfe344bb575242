"""What several commands share: how they find and load a model."""

from __future__ import annotations

from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from service.settings import Settings


def registry_of(settings: Settings) -> ModelRegistry:
    """The registry that the server would have with these settings."""
    return ModelRegistry(
        settings.models_folder,
        options=RuntimeOptions(
            runtime=settings.runtime,
            provider=settings.provider,
            threads=settings.inference_threads,
            device_id=settings.device_id,
            gpu_memory_limit=settings.gpu_memory_limit,
        ),
        max_pixels=settings.max_pixels,
        exif=settings.exif_orientation,
    )


def load_model(settings: Settings, name: str | None) -> LoadedModel:
    """A model by name, or the server's default one, ready to encode."""
    return registry_of(settings).load(name or settings.models[0])
