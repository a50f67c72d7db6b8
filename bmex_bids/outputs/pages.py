# SPDX-License-Identifier: Apache-2.0
"""HTML from the templates in ``data/templates``; what they are given is escaped unless it is Markup."""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bmex_bids.data", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["quoted"] = quote
    return environment


def render(template: str, **values: Any) -> str:
    """The text of a template with these values; a value that it asks for and lacks is an error."""
    return _environment().get_template(template).render(**values)
