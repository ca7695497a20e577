"""The errors that refpeft raises on purpose.

Each message says what was given, what is expected, and what to do. All are `ValueError`s, so that code written for
HF peft, which raises `ValueError` for most of the same reasons, catches them too.
"""


class RefpeftError(ValueError):
    """Something given to refpeft cannot be used; the message says what and why."""


class ConfigError(RefpeftError):
    """A PromptTuningConfig, PrefixTuningConfig or base-model config.json is invalid or incomplete."""


class CheckpointError(RefpeftError):
    """A directory or file of weights is missing, damaged, or does not fit its configuration."""


class InputError(RefpeftError):
    """Token ids, masks, labels, positions or parameters do not fit the model."""
