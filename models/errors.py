"""Everything that ``models`` raises on purpose. ``service.errors`` maps these to HTTP statuses."""


class ModelError(Exception):
    """Base of every error this package raises on purpose; its text is fit for a user's eyes."""


class UnknownModelError(ModelError):
    """No model of that name is in the registry, or it is not loaded."""


class ManifestError(ModelError):
    """``model.json`` or a file it names is missing, malformed or not what the manifest promises."""


class RuntimeUnavailableError(ModelError):
    """The runtime or execution provider asked for cannot run here; the text says what to install."""


class ExportError(ModelError):
    """A model cannot be exported, or what came out does not match the original; nothing was written."""


class PullError(ExportError):
    """A ready-made model cannot be fetched from its hub, or is not what it should be; nothing was written."""


class ImageError(ModelError):
    """A picture cannot be used."""


class UnsupportedImageFormatError(ImageError):
    """The bytes are in no picture format that is accepted."""


class InvalidImageError(ImageError):
    """The bytes claim to be a picture and cannot be decoded to the end."""


class ImageTooLargeError(ImageError):
    """The picture's header declares more pixels than the limit allows."""


class TextTooLongError(ModelError):
    """A text has more tokens than the model's context, and truncation was declined."""


class UnknownTokenError(ModelError):
    """A token id is none of the model's tokenizer."""
