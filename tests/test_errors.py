"""What an error of the operating system means, whoever reports it."""

from __future__ import annotations

import errno

import pytest

from thalweg.errors import disk_is_full


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Permission denied (os error 13)"), False),
        (ValueError("28"), False),
    ],
)
def test_a_full_disk(error, full):
    assert disk_is_full(error) is full
