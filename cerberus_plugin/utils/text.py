"""Text of counted things for messages."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun in the singular or plural form.

    Args:
        number: 0 or more; written with commas between thousands.
        singular: the noun for one.
        plural: the noun for all other numbers; `singular` with "s" if empty.

    Examples:
        >>> counted(1, "image"), counted(12_000, "image"), counted(0, "identity", "identities")
        ('1 image', '12,000 images', '0 identities')
    """
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"
