"""The errors that have a cause outside the program. Each message says what to do about it.

::

    AeicError
     +- InputError              a picture we cannot take         exit 3, HTTP 422
     |   +- UnsupportedFormat   a kind that is not taken         exit 3, HTTP 415
     |   +- TooLarge            more pixels than allowed         exit 3, HTTP 413
     |   +- Unreadable          cut short, or no picture at all  exit 3, HTTP 422
     +- BitstreamError          a frame we cannot decode         exit 4, HTTP 422
     |   +- NotABitstream       the first byte is not ours
     |   +- UnsupportedVersion  made by a later program
     |   +- Truncated           shorter than its header says
     |   +- Damaged             the check value does not hold
     |   +- WrongModel          made with another bundle         exit 5, HTTP 409
     +- BundleError             a model missing or altered       exit 5, HTTP 500
     +- RateError               no such rate point               exit 2, HTTP 400

A mistake of the calling program (a wrong shape or dtype) is a ``ValueError`` or ``TypeError``, not one of these.
"""

from __future__ import annotations


class AeicError(Exception):
    """Root of the tree. ``exit_code`` is the command line's, ``http_status`` the services'; ``problem_type`` names the
    error in their answers, if its class has been renamed."""

    exit_code = 1
    http_status = 500
    problem_type = ""


class InputError(AeicError):
    """A picture that cannot be encoded."""

    exit_code = 3
    http_status = 422


class UnsupportedFormat(InputError):
    """A picture in a format that is not read."""

    http_status = 415


class TooLarge(InputError):
    """A picture with more pixels, or a longer side, than allowed."""

    http_status = 413


class Unreadable(InputError):
    """Bytes that are not a picture, or a picture that was cut short."""


class BitstreamError(AeicError):
    """A frame that cannot be decoded."""

    exit_code = 4
    http_status = 422


class NotABitstream(BitstreamError):
    """The bytes are not an AEIC frame."""


class UnsupportedVersion(BitstreamError):
    """A frame of a format version, or with flags, that this program does not know."""


class Truncated(BitstreamError):
    """A frame with fewer bytes than it must have."""


class Damaged(BitstreamError):
    """A frame whose check value does not hold: some bit of it was changed."""


class WrongModel(BitstreamError):
    """A frame that another bundle made."""

    exit_code = 5
    http_status = 409


class BundleError(AeicError):
    """A model on disk that is missing, incomplete or altered."""

    exit_code = 5
    http_status = 500


class RateError(AeicError):
    """A rate point that the bundle does not have."""

    exit_code = 2
    http_status = 400


def remedy(*extras: str) -> str:
    """The command that installs ``extras`` of the package, for errors that name a missing one. AEIC is installed from a
    clone: a package index does not have it."""
    return f'run pip install ".[{",".join(extras)}]" in a clone of the AEIC repository'
