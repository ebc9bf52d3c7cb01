"""Order and titles of the site's pages."""

from pathlib import Path

INDEX = "README.md"
"""The page that the site opens with."""

SECTIONS = {
    "Start": ("docs/guide.md", "docs/installing.md", "docs/data.md", "docs/training.md", "docs/faq.md"),
    "Use": (
        "docs/python.md",
        "docs/chat.md",
        "docs/serving.md",
        "docs/combine.md",
        "docs/bank.md",
        "docs/export.md",
        "docs/verify.md",
        "docs/publishing.md",
    ),
    "Measure": (
        "docs/metrics.md",
        "docs/evaluation.md",
        "docs/judging.md",
        "docs/analysis.md",
        "docs/studies.md",
    ),
    "Devices": ("docs/tpu.md", "docs/pods.md", "docs/gpu.md", "docs/quantization.md", "docs/performance.md"),
    "Background": (
        "docs/method.md",
        "docs/recipes.md",
        "docs/reproduction.md",
        "docs/comparison.md",
        "docs/engine.md",
    ),
    "Files": ("docs/formats.md", "docs/adapter_files.md", "docs/damage.md", "aligner_jax/data/quickstart/README.md"),
    "Project": ("docs/layout.md", "docs/extending.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
}
"""Paths of pages in the repository, by title of the section. A page that does not exist is left out."""


def present(root: Path) -> dict[str, list[str]]:
    """Returns the sections with the pages that exist below `root`; sections without pages are left out."""
    sections = {title: [page for page in pages if (root / page).is_file()] for title, pages in SECTIONS.items()}
    return {title: pages for title, pages in sections.items() if pages}


def unlisted(root: Path) -> list[str]:
    """Returns the files docs/*.md that no section has."""
    listed = {page for pages in SECTIONS.values() for page in pages}
    return sorted(page for page in (f"docs/{path.name}" for path in (root / "docs").glob("*.md")) if page not in listed)
