"""Copies the config files into the package as it is built; all else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = "configs"


class BuildWithConfigs(build_py):
    """Puts configs/, which the repository has at its top, into the package, where a wheel has it.

    An editable install finds it in the repository (`files.config_files`).
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source, target in self._copies():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return super().get_outputs(include_bytecode) + [target for _, target in self._copies()]

    def _copies(self) -> list[tuple[str, str]]:
        files = sorted(Path(CONFIGS).rglob("*.py"))
        return [(str(file), str(Path(self.build_lib, "aligner_jax", file))) for file in files]


setup(cmdclass={"build_py": BuildWithConfigs})
