"""Everything that ``prompts`` raises on purpose. ``service.errors`` maps these to HTTP statuses."""


class PromptError(Exception):
    """Base of every error this package raises on purpose; its text is fit for a user's eyes."""


class TemplateError(PromptError):
    """A template, or a file of templates, breaks a rule; the text names it."""


class UnknownTemplateSetError(PromptError):
    """No template set of that name has been loaded."""


class LabelError(PromptError):
    """A list of labels, or one label's own prompts, breaks a rule; the text names the position."""


class TooManyLabelsError(LabelError):
    """More labels, or more prompts for one label, than the limit allows."""


class EmbeddingError(PromptError):
    """Features have the wrong shape, a length of zero, or values that are not finite."""


class ClassifierNameError(PromptError):
    """A classifier's name is not fit to be one, and so not to be a file's name either."""


class UnknownClassifierError(PromptError):
    """No classifier of that name is in the store."""


class StoreError(PromptError):
    """A stored classifier cannot be read, or one cannot be written."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached now; what is known from it is still served."""


class SupersededError(StoreError):
    """A write came too late: a newer one of its name has been accepted, or the name was deleted since."""
