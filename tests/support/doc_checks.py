"""Checks of commands that pages show: every flag, config field, file, script and extra exists."""

import contextlib
import functools
import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import places
from doc_pages import Line

from aligner_jax.errors import InputError
from aligner_jax.evals.interface import EvaluateConfig, parse_evaluate_config, parse_options
from aligner_jax.evals.run import EVALUATIONS, find_evaluation
from aligner_jax.peft import METHODS
from aligner_jax.runtime.command import load_config
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.first_adapter import method_choice
from aligner_jax.tasks.objectives import OBJECTIVES, objective_choice, parse_complete
from aligner_jax.usage.commands import command_names, file_of, read_command, takes_flags
from scripts.site.reference.fields import Field, fields_of

EXTERNAL = {
    "cat", "cd", "curl", "docker", "export", "gcloud", "git", "gsutil", "head", "helm", "hf", "huggingface-cli", "jq",
    "jupyter", "kubectl", "llama-cli", "llama-server", "ls", "mkdir", "nvidia-smi", "ollama", "open", "sed", "sky",
    "ssh", "tail", "tar", "tensorboard", "tmux", "uv", "unzip", "vllm", "wandb", "wget", "xpk", "for", "done",
    "fi", "if", "while", "sleep", "set", "echo", "tee", "pipx", "conda", "sudo", "chmod", "scp", "rsync", "kill",
    "python3.12",
}  # fmt: skip
"""Programs of others that pages may name; their arguments are not checked."""

_EXTRAS = tomllib.loads((places.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def problems(line: Line) -> list[str]:
    """Returns what is wrong with a command, each as one sentence; empty if nothing is."""
    words = list(line.words)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if not words:
        return []
    program, *rest = words
    program = re.sub(r"^python3(\.\d+)?$", "python", program)
    program = program.rpartition("/")[2] if program.startswith((".venv", "ENV/")) else program
    if program in ("python", "python3") and rest[:1] == ["-m"]:
        return _of_module(rest[1], rest[2:], line)
    if program in ("python", "python3", "bash", "source", "sh"):
        return _of_script(rest[0], rest[1:], line) if rest and rest[0] != "-c" else []
    if program in ("pip", "%pip", "!pip"):
        return _of_pip(rest)
    if program in ("aligner-jax", "aligner_jax"):
        return _of_command(rest[0], rest[1:], line) if rest and not rest[0].startswith("-") else []
    if program in EXTERNAL or _is_placeholder(program):
        return []
    return [f"{program!r} is no program that tests/support/doc_checks.py knows"]


def _of_module(name: str, rest: list[str], line: Line) -> list[str]:
    package, _, module = name.partition(".")
    if package == "aligner_jax":
        return _of_command(module, rest, line) if module else []
    if package == "pip":
        return _of_pip(rest)
    if package != "scripts":
        return [] if importlib.util.find_spec(package) else [f"there is no module {name}"]
    path = places.ROOT / "/".join(name.split("."))
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.glob("*.py"))
    return _with_flags(name, files, rest, line)


def _of_script(name: str, rest: list[str], line: Line) -> list[str]:
    if name.startswith(".venv/") or _is_placeholder(name):
        return []
    file = places.ROOT / name
    return _with_flags(name, [file] if file.is_file() else [], rest, line)


def _with_flags(name: str, files: list[Path], words: list[str], line: Line) -> list[str]:
    """Checks that a script exists and that its flags stand in its source; a command after "--" is checked too."""
    if not files:
        return [f"there is no {name}"]
    if "--" in words:
        split = words.index("--")
        return _with_flags(name, files, words[:split], line) + problems(line._replace(words=words[split + 1 :]))
    beside = {path for path in files[0].parent.glob("*.py") if files[0].suffix == ".py"}
    # A shell script hands its flags on to modules.
    for module in re.findall(r"-m ((?:aligner_jax|scripts)[\w.]+)", files[0].read_text(encoding="utf-8")):
        beside |= {*(places.ROOT / "/".join(module.split("."))).parent.glob("*.py")}
    text = "".join(path.read_text(encoding="utf-8") for path in {*files, *beside})
    found = []
    for word in words:
        flag = re.match(r"--(?:no)?([\w-]+)", word)
        if flag and not re.search(rf"--{flag[1]}\b|DEFINE_\w+\(\s*\"{flag[1]}\"|[(\s]{flag[1]}\)", text):
            found.append(f"{name} has no flag --{flag[1]}")
    return found


def _of_pip(words: list[str]) -> list[str]:
    found = []
    for word in words:
        named = re.fullmatch(r"(?:\.|aligner[_-]jax|[^\[\]]*(?:/|\.whl))\[([\w,-]+)\](?: @ .*)?", word)
        found += [
            f"there is no extra {each!r}" for each in (named[1].split(",") if named else ()) if each not in _EXTRAS
        ]
        if word.endswith(".txt") and not (places.ROOT / word).is_file():
            found.append(f"there is no file {word}")
    return found


def _of_command(name: str, words: list[str], line: Line) -> list[str]:
    if name not in command_names():
        folder = places.ROOT / "aligner_jax" / name
        if (folder / "__main__.py").is_file():
            return _with_flags(name, [folder / "__main__.py"], words, line)
        spec = importlib.util.find_spec(f"aligner_jax.{name}")
        return [] if spec and spec.submodule_search_locations is None else [f"there is no command {name}"]
    if not takes_flags(name):
        return _with_flags(f"aligner_jax.{name}", [file_of(name)], words, line)
    command = read_command(name)
    known = {flag: command.flags[flag] for flag in command.names}
    found, config, overrides = [], None, []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        flag, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("--"):
            # A value without a flag is a file that the command takes; the commands refuse others themselves.
            continue
        if flag.startswith(("config.", "noconfig.")):
            overrides.append((flag.partition(".")[2], value if equals else not flag.startswith("no")))
            continue
        if flag in ("help", "helpfull"):
            continue
        if flag not in known and not (flag.startswith("no") and known.get(flag[2:]) and known[flag[2:]].boolean):
            found.append(f"{name} has no flag --{flag}")
            continue
        if flag == "config":
            config = value if equals else waiting.pop(0)
        elif equals and not _is_placeholder(value):
            found += [text for each in value.split("|") for text in _of_value(name, known[flag], each)]
    if overrides and "config" not in known:
        return [*found, f"{name} takes no config, and so no --config.{overrides[0][0]}"]
    return found + (_of_config(config, overrides, line) if config or overrides else [])


def _of_value(name: str, flag, value: str) -> list[str]:
    if _is_placeholder(value):
        return []
    try:
        flag.parser.parse(value)
    except (ValueError, TypeError) as error:
        return [f"{name}: --{flag.name}={value}: {error}"]
    return []


def _of_config(path: str | None, overrides: list[tuple[str, str | bool]], line: Line) -> list[str]:
    named = [(name, value) for name, value in overrides if not any(part.isupper() for part in name.split("."))]
    known = _fields()
    kept = [
        (name, value) for name, value in named
        if not (_is_placeholder(str(value)) and not known.get(name, _TEXT).kind.startswith("text"))
    ]  # fmt: skip
    if path is None or _is_placeholder(path):
        beginnings = {name.rpartition(".")[0] for name in known if known[name].kind == "section"}
        sections = {name for name, field in known.items() if field.kind == "section"} | beginnings
        return [
            f"config.{name} is no field"
            for name, _ in named
            if name not in known and name.rpartition(".")[0] not in sections
        ]
    try:
        with contextlib.chdir(places.ROOT):
            config = load_config(path, kept, choices=[method_choice(), objective_choice()])
            if "evaluation" in config:
                parsed = parse_evaluate_config(config)
                parse_options(find_evaluation(parsed.evaluation.name), parsed)
            else:
                parse_complete(config)
    except InputError as error:
        # A part that the page leaves out may set it.
        return [] if "is not set" in str(error) and not line.is_whole else [str(error)]
    return []


_TEXT = Field("", "text", "", "", "")


@functools.cache
def _fields() -> dict[str, Field]:
    """Returns all fields that a config can have, by name without "config."."""
    sections: list[tuple[type, str]] = [(TrainConfig, "config"), (EvaluateConfig, "config")]
    sections += [(method.options, "config.adapter") for method in METHODS.values()]
    sections += [(objective.options, "config.objective") for objective in OBJECTIVES.values()]
    sections += [(evaluation.options, "config.evaluation") for evaluation in EVALUATIONS.values()]
    found = [field for section, name in sections for field in fields_of(section, name)]
    named = {field.name.removeprefix("config."): field for field in found}
    return {**named, "evaluation.name": _TEXT}


def _is_placeholder(value: str) -> bool:
    """Returns True for what a reader has to replace: DIR, ORG/NAME, STEPS, ENV/bin/python, or anything with …"""
    return "…" in value or "..." in value or re.fullmatch(r"[A-Z][A-Z0-9_]*([|/.,:@\[+].*)?", value) is not None


def each_problem(lines: Iterator[Line] | list[Line], check: Callable[[Line], list[str]] = problems) -> list[str]:
    """Returns the problems of all lines, as "page:line: sentence"."""
    return [f"{line.place}: {sentence}" for line in lines for sentence in check(line)]
