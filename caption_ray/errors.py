"""Errors meant for the person at the keyboard: each names the thing, the rule and the remedy."""

from collections.abc import Mapping


class CaptionRayError(Exception):
    """Work could not be done. Jobs print the message alone, without a traceback, and exit with `exit_code`.

    result: what was done all the same, for the job to print.  exit_code: by default that of the class, 1 for work that
    failed, 2 for a wrong request.
    """

    exit_code = 1

    def __init__(
        self, message: str, *, result: Mapping[str, object] | None = None, exit_code: int | None = None
    ) -> None:
        super().__init__(message)
        self.result = result
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(CaptionRayError):
    """The request itself is wrong: a path that does not exist, settings that contradict each other.

    Where a path holds no data set, feature cache or bundle at all, the error is that artefact's, with the exit code of
    this one; an artefact that is there but damaged, or of another version, is work that failed.
    """

    exit_code = 2


class CaptionFileError(CaptionRayError):
    """A caption file, split list or data set folder is not in a layout that can be read."""


class BadInputError(CaptionRayError):
    """Some pictures or captions cannot be used; the message is a summary with file and line."""


class PictureError(CaptionRayError):
    """One picture is absent, broken or of a kind that cannot be decoded."""

    exit_code = 2


class NotAPictureError(PictureError):
    """What was given is no picture of a kind that is read, whatever its name says."""


class TooManyPixelsError(PictureError):
    """A picture's header announces more pixels than are decoded."""


class DatasetError(CaptionRayError):
    """A prepared data set is absent (wrong use), incomplete or of another format version."""


class FeatureCacheError(CaptionRayError):
    """Cached features are absent (wrong use), incomplete, or belong to another encoder or data set."""


class BundleError(CaptionRayError):
    """A bundle is absent (wrong use), incomplete, damaged or of another format version."""


class RunError(CaptionRayError):
    """A training run cannot start, or go on under this name."""


class DivergedError(RunError):
    """A training run's numbers are finite no more, by its settings: it would end so again."""


class WorkLeftError(CaptionRayError):
    """A training run was asked to stop, has saved, and goes on by the same command; the code is EX_TEMPFAIL."""

    exit_code = 75


class SweepInterruptedError(CaptionRayError):
    """A sweep was stopped from the keyboard; what its trials had reached is kept."""

    exit_code = 130


class QualityError(CaptionRayError):
    """A trained model does not reach the score that it must reach, or is worse than the one it would replace."""
