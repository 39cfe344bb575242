"""Everything that an evaluation raises on purpose."""


class EvaluationError(Exception):
    """An evaluation cannot be made; the text is fit for a user's eyes."""


class FolderError(EvaluationError):
    """The folder of pictures, or the file that names its classes, is not what it should be."""


class ServerError(EvaluationError):
    """The server cannot be reached, or refuses what it is asked."""
