"""Options that several ``he`` subcommands take."""

from __future__ import annotations

RANGE_HELP = "public bound on magnitudes: a number, one a column R1,R2,..., or a .npy file of these"
SCHEMES = ("bfv", "ckks", "bfv-sanitized", "ckks-sanitized")


def feature_range_of(text: str | None):
    """A number, a comma list or a .npy file of one bound a column, as ``feature_range`` is given."""
    from tfprivacy_lab import files
    from tfprivacy_lab.checks import InputError

    if text is None:
        return None
    if text.endswith(".npy"):
        return files.read_array(text, "feature_range")
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"Expected --feature-range to be a number, a comma list of one a column, or a .npy file, got {text!r}."
        ) from error
    return bounds if "," in text else bounds[0]
