"""Writes dicts as YAML that people read: keys in order, scripts as blocks, no anchors."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Never writes anchors for parts that two places share."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def write_yaml(document: dict[str, Any], head: str) -> str:
    """Returns the document as YAML after a head of comment lines.

    Args:
      document: dict of texts, numbers, lists and dicts.
      head: lines that begin with #, each with its line break.
    """
    return head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
