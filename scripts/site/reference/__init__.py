"""Pages of the site that are written from the code, so that they cannot go stale."""

from collections.abc import Callable

from scripts.site.reference.api_page import api_page
from scripts.site.reference.commands_page import commands_page
from scripts.site.reference.config_page import config_page
from scripts.site.reference.methods_page import methods_page

REFERENCE: dict[str, Callable[[], str]] = {
    "reference/commands.md": commands_page,
    "reference/config.md": config_page,
    "reference/methods.md": methods_page,
    "reference/python.md": api_page,
}
"""Functions that return the Markdown of a page, by the page's path on the site."""
