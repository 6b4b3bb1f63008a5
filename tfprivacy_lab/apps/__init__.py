"""Medicine, finance and education: a question each, on real data, answered with what the lab has.

Adapters and questions, no algorithms: every method comes from ``dp``, ``he``, ``mpc`` and ``audit``. Modules load on
first use.
"""

from __future__ import annotations

from tfprivacy_lab.lazy_exports import lazy_exports

APPS = ("medical", "finance", "education")

__getattr__, __dir__, _ = lazy_exports(__name__, {})
__all__ = ["APPS"]
