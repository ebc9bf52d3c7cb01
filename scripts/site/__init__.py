"""The documentation site: the pages of docs/ and a reference that is written from the code."""
