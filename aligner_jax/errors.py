"""The one exception class for what a user can get wrong."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence naming the file, line, field or tensor.

    The commands print the message and exit with status 1; any other exception is a bug and keeps its traceback.
    """
