"""A budget on a file: what was spent on a dataset, by whom, and what is left.

No TensorFlow is loaded here but by the callback.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ledger": ("Ledger", "Reservation", "dataset_digest", "run_name"),
        "callback": ("LedgerCallback",),
    },
)
