# Changes to the repository's root, makes the virtual environment if there is none, and sets $python to its interpreter.
# Packages are installed again when requirements.txt or the interpreter changes. The scripts in the folder above source
# this file.
#
#   PYTHON=/path/to/python3.12     the interpreter to make the environment with
#   ALIGNER_VENV=DIR               the environment's folder; default .venv
#
# A script that sets more_requirements=FILE beforehand gets the packages of that file too.

started_in=$PWD
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

venv=${ALIGNER_VENV:-.venv}
python=$venv/bin/python
stamp=$venv/installed-requirements
# Beside the folder and not in it: making an environment empties the folder.
unfinished=$venv.unfinished

fail() {
  echo "error: $*" >&2
  exit 1
}

# quietly WHAT COMMAND…: prints WHAT and the time it took; shows the command's output only if it fails.
quietly() {
  local what=$1 begun=$SECONDS log ticker='' interrupted='' status=0
  shift
  log=$(mktemp)
  printf '%s … ' "$what"
  if [ -t 1 ]; then
    while sleep 1; do printf '\r%s … %d s ' "$what" $((SECONDS - begun)); done &
    ticker=$!
  fi
  trap 'interrupted=yes' INT
  "$@" >"$log" 2>&1 || status=$?
  trap - INT
  if [ -n "$ticker" ]; then
    { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
    printf '\r%s … ' "$what"
  fi
  if [ -n "$interrupted" ]; then
    printf 'interrupted; the same command starts it again\n'
  elif [ $status -eq 0 ]; then
    printf 'done in %d s\n' $((SECONDS - begun))
  else
    printf 'failed\n'
    tail -n 30 "$log" >&2
  fi
  rm -f "$log"
  [ -z "$interrupted" ] || exit 130
  return $status
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

# Prints the first interpreter that an environment can be made with.
find_python() {
  local candidate version found='' candidates='python3.12 python3.13 python3.14 python3 python'
  if [ -n "${PYTHON:-}" ]; then
    if is_new_enough "$PYTHON"; then
      echo "$PYTHON"
      return
    fi
    fail "PYTHON is $PYTHON, which is not a Python 3.12 or newer that runs."
  fi
  for candidate in $candidates; do
    # It is run, since a name on the PATH can be a shim without an interpreter.
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    if ! is_new_enough "$candidate"; then
      found=${found:-"; $candidate is $version"}
    elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      found="; $candidate lacks its venv module, which Debian and Ubuntu have in the package python$version-venv"
    else
      echo "$candidate"
      return
    fi
  done
  fail "this needs Python 3.12 or newer and found none$found: get one with 'apt install python3.12 python3.12-venv'," \
    "'brew install python@3.12' or 'pyenv install 3.12', or name one with PYTHON=/path/to/python3.12."
}

# wanted_stamp FILE…: prints a hash of the files and the interpreter.
wanted_stamp() {
  cat "$@" | "$python" -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read() + sys.version.encode()).hexdigest())'
}

install_requirements() {
  "$python" -m pip --version || "$python" -m ensurepip || return
  "$python" -m pip install --quiet --disable-pip-version-check -r requirements.txt
}

make_environment() {
  local interpreter
  if [ -e "$unfinished" ] || ! is_new_enough "$python"; then
    if [ -e "$venv" ] && [ ! -e "$unfinished" ] && [ ! -e "$stamp" ]; then
      fail "$venv was not made by this script and has no Python 3.12 or newer that runs: move it away, and try again."
    fi
    interpreter=$(find_python)
    touch "$unfinished"
    quietly "Making $venv with $("$interpreter" --version)" "$interpreter" -m venv --clear "$venv"
  fi
  if [ ! -e "$stamp" ] || [ "$(cat "$stamp")" != "$(wanted_stamp requirements.txt)" ]; then
    touch "$unfinished"
    quietly "Installing requirements.txt into $venv (about 450 MB; takes a few minutes)" install_requirements ||
      fail "the packages could not be installed (pip's last lines are above); the same command tries again."
    wanted_stamp requirements.txt >"$stamp"
    rm -f "$unfinished"
  fi
}

# Installs the packages of a file into the environment, again if they or those of requirements.txt changed.
install_more() {
  local name=${1##*/} wanted
  wanted=$(wanted_stamp requirements.txt "$1")
  if [ "$(cat "$venv/installed-$name" 2>/dev/null || true)" != "$wanted" ]; then
    quietly "Installing $name into $venv" \
      "$python" -m pip install --quiet --disable-pip-version-check -r "$1" ||
      fail "the packages of $1 could not be installed (pip's last lines are above); the same command tries again."
    echo "$wanted" >"$venv/installed-$name"
  fi
}

make_environment
[ -z "${more_requirements:-}" ] || install_more "$more_requirements"
