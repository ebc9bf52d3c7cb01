"""Damages checkpoints and checks what may then be restored; part of torture_resume.py."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aligner_jax.errors import InputError
from aligner_jax.objectives.step import TrainState
from aligner_jax.runtime.checkpoint import Checkpoints

STEPS = (3, 6, 9)


def state_of(step: int) -> TrainState:
    """Returns a state like that of an Aligner's training, another for each step."""
    draw = np.random.default_rng(step)
    trainable = {name: jnp.asarray(draw.standard_normal(shape), jnp.float32) for name, shape in _SHAPES.items()}
    moments = optax.adamw(1e-3).init(trainable)
    moments = jax.tree.map(lambda x: jnp.asarray(draw.standard_normal(x.shape) * 9, x.dtype), moments)
    return TrainState(trainable=trainable, optimizer=moments, step=jnp.int32(step))


_SHAPES = {"tokens_pd": (2, 32), "gates_ln": (3, 4)}


def save_all(folder: Path) -> None:
    """Saves undamaged checkpoints of `STEPS`."""
    with Checkpoints(folder, keep=len(STEPS)) as checkpoints:
        for step in STEPS:
            checkpoints.save(step, state_of(step), {"position": step})


def damage(folder: Path, chance: random.Random) -> tuple[str, set[int]]:
    """Damages a folder of checkpoints in one way; returns a description and the affected steps."""
    name = chance.choice(sorted(DAMAGES))
    touched = DAMAGES[name](folder, chance)
    return name, {int(step) for path in touched for step in [path.relative_to(folder).parts[0]] if step.isdecimal()}


def _file(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(path for path in folder.glob("*/**/*") if path.is_file()))


def _step_folder(folder: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(path for path in folder.iterdir() if path.is_dir()))


def _changed(change: Callable[[bytearray, random.Random], bytes]) -> Callable[[Path, random.Random], list[Path]]:
    def apply(folder: Path, chance: random.Random) -> list[Path]:
        path = _file(folder, chance)
        path.write_bytes(change(bytearray(path.read_bytes()), chance))
        return [path]

    return apply


def _flip(content: bytearray, chance: random.Random) -> bytes:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def _truncate(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content[: chance.randrange(max(len(content), 1))])


def _zero_fill(content: bytearray, chance: random.Random) -> bytes:
    first, last = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return bytes(content[:first]) + bytes(last - first) + bytes(content[last:])


def _append(content: bytearray, chance: random.Random) -> bytes:
    return bytes(content) + chance.randbytes(chance.randrange(1, 64))


def _delete(folder: Path, chance: random.Random) -> list[Path]:
    path = _file(folder, chance)
    path.unlink()
    return [path]


def _rename(folder: Path, chance: random.Random) -> list[Path]:
    path = _file(folder, chance)
    path.rename(path.with_name(path.name + chance.choice((".bak", "0", "~"))))
    return [path]


def _swap_files(folder: Path, chance: random.Random) -> list[Path]:
    a, b = _file(folder, chance), _file(folder, chance)
    content_a, content_b = a.read_bytes(), b.read_bytes()
    a.write_bytes(content_b)
    b.write_bytes(content_a)
    return [a, b]


def _delete_folder(folder: Path, chance: random.Random) -> list[Path]:
    path = chance.choice(sorted(path for path in folder.glob("**/*") if path.is_dir()))
    shutil.rmtree(path)
    return [path]


def _rename_step(folder: Path, chance: random.Random) -> list[Path]:
    path = _step_folder(folder, chance)
    new = path.with_name(chance.choice(("1", "7", "12", f"{path.name}.bak", f"0{path.name}", "copy")))
    if not new.exists():
        path.rename(new)
    return [path]


def _swap_steps(folder: Path, chance: random.Random) -> list[Path]:
    a, b = _step_folder(folder, chance), _step_folder(folder, chance)
    if a != b:
        a.rename(folder / "aside")
        b.rename(a)
        (folder / "aside").rename(b)
    return [a, b]


def _stray(folder: Path, chance: random.Random) -> list[Path]:
    path = folder / chance.choice(("12", "15.orbax-checkpoint-tmp-7", "damaged_9", "notes.txt", "12.bak"))
    if path.exists():
        return []
    if chance.random() < 0.5:
        path.write_bytes(chance.randbytes(10))
    else:
        path.mkdir()
    return []


DAMAGES: dict[str, Callable[[Path, random.Random], list[Path]]] = {
    "flip a bit": _changed(_flip),
    "truncate": _changed(_truncate),
    "empty": _changed(lambda content, chance: b""),
    "fill with zeros": _changed(_zero_fill),
    "append": _changed(_append),
    "delete": _delete,
    "rename": _rename,
    "swap two files": _swap_files,
    "delete a folder": _delete_folder,
    "rename a checkpoint": _rename_step,
    "swap two checkpoints": _swap_steps,
    "something strange beside them": _stray,
}


def damaged_case(good: Path, folder: Path, chance: random.Random) -> tuple[str, str]:
    """Damages a copy of the good checkpoints and restores; returns the damage and the outcome.

    Raises:
      AssertionError: something other than a saved state was restored, an untouched newer one was passed over, or the
        failure is not one sentence.
    """
    shutil.copytree(good, folder)
    done, touched = [], set()
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        try:
            what, steps = damage(folder, chance)
        except IndexError:
            break  # nothing is left to damage
        done.append(what)
        touched |= steps
    try:
        with Checkpoints(folder) as checkpoints:
            found = checkpoints.restore(state_of(0))
    except InputError as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        return " + ".join(done), "one sentence"
    untouched = max((step for step in STEPS if step not in touched), default=None)
    if found is None:
        assert untouched is None, f"{done}: checkpoint {untouched} was passed over"
        return " + ".join(done), "nothing whole is left"
    step, state, data_state = found
    assert step in STEPS, f"{done}: restored step {step}"
    assert untouched is None or step >= untouched, f"{done}: {step} was taken, and {untouched} is whole"
    same = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), state, state_of(step))
    assert all(jax.tree.leaves(same)), f"{done}: the state is not that of step {step}"
    assert data_state == {"position": step}, f"{done}: the data's position is {data_state}"
    return " + ".join(done), "the newest" if step == STEPS[-1] else "an earlier one"


def damage_restores(folder: Path, number: int, seed: int, record: Path) -> list[dict[str, str]]:
    """Runs this many cases and writes a line of the record for each; cases in the record are not run again.

    Raises:
      AssertionError: the error of `damaged_case`, with the case's number; its folder stays.
    """
    results = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    good = folder / f"good_{seed}"
    if not good.exists():
        save_all(good)
    for case in range(len(results), number):
        place = folder / f"damage_{case}"
        shutil.rmtree(place, ignore_errors=True)
        try:
            done, outcome = damaged_case(good, place, random.Random(f"{seed} {case}"))
        except Exception as error:
            raise AssertionError(f"damage case {case} of seed {seed}: {type(error).__name__}: {error}") from error
        shutil.rmtree(place)
        results.append({"damage": done, "outcome": outcome})
        with record.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        if (case + 1) % 20 == 0:
            print(f"damage {case + 1}/{number}", flush=True)
    return results
