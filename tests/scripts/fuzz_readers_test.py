"""A small share of the cases of `scripts.damage.fuzz_readers`, and a check that it detects every kind of fault."""

import subprocess
import sys
import textwrap

import places
import pytest

REPOSITORY = places.ROOT
KINDS = sorted(
    path.stem
    for path in (REPOSITORY / "scripts" / "damage" / "kinds").glob("[a-z]*.py")
    if path.stem not in ("kind", "mutations")
)
CASES = 60

FAULTY = """
    import os, sys, time
    from aligner_jax.errors import InputError
    from scripts.damage import fuzz_readers
    from scripts.damage.kinds.kind import Kind

    def read(folder):
        content = (folder / "a").read_bytes()
        if content == b"refused":
            raise InputError("no")
        if content == b"traceback":
            raise KeyError("x")
        if content == b"message":
            error = InputError("")
            error.args = ("two\\nlines",)
            raise error
        if content == b"memory":
            block = bytearray(2**27)
            block[:] = b"a" * 2**27
        if content == b"hang":
            time.sleep(60)
        if content == b"crash":
            os.abort()
        return content.decode() if content in (b"differs", b"allowed") else "the result"

    ALL = [b"refused", b"traceback", b"message", b"memory", b"hang", b"crash", b"differs", b"allowed", b"same"]
    kind = Kind(
        "faulty", lambda: [{"a": b"good"}], lambda rng, files: {"a": rng.choice(ALL)}, read,
        lambda sample, files: files["a"] == b"allowed",
    )
    fuzz_readers.kind_of = lambda name: kind
    sys.argv = ["", "--kind=faulty", "--cases=60", "--seconds=1", "--most-alike=1", *sys.argv[1:]]
    sys.exit(fuzz_readers.main())
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_as_they_are(kind):
    done = run("-m", "scripts.damage.fuzz_readers", f"--kind={kind}", f"--cases={CASES}", "--seed=16", "--seconds=60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: {CASES} cases" in done.stdout


def test_every_kind_of_fault_is_seen(tmp_path):
    done = run("-c", textwrap.dedent(FAULTY), f"--keep={tmp_path}")
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    for fault in ("traceback", "message", "memory", "hang", "crash", "differs"):
        assert any(line.startswith(f"faulty {fault}: case ") for line in lines), done.stdout
    assert "60 cases" in lines[-1]
    for outcome in ("refused", "accepted, the same result", "accepted, another result that the format allows"):
        assert outcome in lines[-1]
    kept = {(folder / "a").read_text() for folder in tmp_path.iterdir()}
    assert kept == {"traceback", "message", "memory", "hang", "crash", "differs"}


def test_a_kind_that_fails_is_no_pass():
    for good, broken in (('{"a": b"good"}', '{"a": b"refused"}'), ('{"a": rng.choice(ALL)}', "1 / 0")):
        assert good in FAULTY
        done = run("-c", textwrap.dedent(FAULTY).replace(good, broken))
        assert done.returncode == 1
        assert "the kind itself fails, or the reader refuses its samples" in done.stderr
