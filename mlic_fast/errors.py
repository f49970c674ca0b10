# SPDX-License-Identifier: Apache-2.0
"""The one family of exceptions: every error this package raises on purpose is a MlicError. And one warning.

Each class also derives from the built-in exception that a caller would expect, so that
`except ValueError` around a decoder keeps working. Messages say what was wrong, where,
and what to do.
"""

from __future__ import annotations


class MlicError(Exception):
    """Root of the family."""


class ConfigError(MlicError, ValueError):
    """A model configuration that the architecture does not allow."""


class CheckpointError(MlicError, ValueError):
    """Weights that cannot be read, or that are not those of a model of the family."""


class ImageError(MlicError, ValueError):
    """A picture that cannot be read, or of a kind that is not supported."""


class NoPicturesError(ImageError):
    """A folder without a single picture that can be trained on."""


class CodingError(MlicError, ValueError):
    """Symbols, indexes or tables that the range coder cannot code."""


class BitstreamError(MlicError, ValueError):
    """Compressed data that is damaged: truncated, altered, or with something left over."""


class NotMlicFileError(BitstreamError):
    """Data that is not an .mlic file at all, or of a version this release cannot read."""


class TruncatedFileError(BitstreamError):
    """An .mlic file that ends before its contents do."""


class GuardError(BitstreamError):
    """Scales that came out too differently from the encoder's, or a file whose guard is damaged."""


class WrongWeightsError(MlicError, ValueError):
    """The file was written with other weights than those at hand."""


class LimitError(MlicError, ValueError):
    """Input that asks for more than a stated limit allows."""


class TargetError(MlicError, ValueError):
    """A target for rate or quality that makes no sense, or that no model at hand reaches."""


class NonFiniteError(MlicError, ValueError):
    """A scale, mean or latent that is not a finite number."""


class DeviceError(MlicError, RuntimeError):
    """A device that does not exist here, or that ran out of memory."""


class BackendError(MlicError, RuntimeError):
    """A compute backend that was asked for and is not available."""


class ForkError(MlicError, RuntimeError):
    """A process that was forked where that is not possible."""


class NotAModelError(MlicError, TypeError):
    """Something else than a model where a model is wanted."""


class RecipeError(MlicError, ValueError):
    """Settings of a training that make no sense, contradict each other, or do not fit what is being resumed."""


class TrainingError(MlicError, RuntimeError):
    """A training that cannot go on."""


class CurveError(MlicError, ValueError):
    """Points of rate and quality that make no curve, results that cannot be read, or curves that cannot be compared."""


class CodecError(MlicError, ValueError):
    """A codec to compare with that is unknown, described wrongly, not installed, or of a kind that is not supported."""


class CodecRunError(MlicError, RuntimeError):
    """A codec to compare with that failed on a picture: a program that ended with an error, a model that raised one."""


class NotKeptWarning(UserWarning):
    """Something of a picture that could not be kept, or was changed, on the way in."""
