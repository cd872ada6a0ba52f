"""What can go wrong for a user: every error is one clear line that says what to do."""


class DgemmaError(Exception):
    """The base of all errors that are the input's fault, not a defect of the program."""


class CheckpointError(DgemmaError):
    """A model folder that cannot be read, is damaged, or holds another architecture."""


class RequestError(DgemmaError):
    """A prompt, a sampler setting or a combination of options that has no meaning."""


class DeviceError(DgemmaError):
    """A device that was asked for and is not there."""
