# Changes to the repository's root, makes the virtual environment if there is none, and sets $python to its interpreter.
# Packages are installed again when their list or the interpreter changes. The scripts in the folder above source this
# file.
#
#   PYTHON=/path/to/python3.12     the interpreter to make the environment with
#   ALIGNER_VENV=DIR               the environment's folder; default .venv
#
# A script may set, beforehand:
#
#   requirements=FILE              a list with fewer packages than requirements.txt, which has all of them
#   more_requirements=FILE         a list to install beside it

started_in=$PWD
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

venv=${ALIGNER_VENV:-.venv}
python=$venv/bin/python
requirements=${requirements:-requirements.txt}
# Beside the folder and not in it: making an environment empties the folder.
unfinished=$venv.unfinished

fail() {
  echo "error: $*" >&2
  exit 1
}

# quietly WHAT COMMAND…: prints WHAT and the time it took; on a terminal, meanwhile the last line that the command
# printed; all of its output only if it fails.
quietly() {
  local what=$1 begun=$SECONDS log ticker='' interrupted='' status=0
  shift
  log=$(mktemp)
  printf '%s … ' "$what"
  if [ -t 1 ]; then
    echo
    while sleep 1; do tick $((SECONDS - begun)) "$(tail -n 1 "$log")"; done &
    ticker=$!
  fi
  trap 'interrupted=yes' INT
  "$@" >"$log" 2>&1 || status=$?
  trap - INT
  if [ -n "$ticker" ]; then
    { kill "$ticker" && wait "$ticker"; } 2>/dev/null || true
    printf '\r\033[K'
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

# tick SECONDS LINE: prints a line that the next one overwrites, cut to a narrow terminal.
tick() {
  local line="  $1 s  ${2#"${2%%[![:space:]]*}"}"
  printf '\r\033[K%s' "${line:0:78}"
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

# stamp_of FILE: prints the path of the file that says which list was installed.
stamp_of() {
  case $1 in
    requirements.txt) echo "$venv/installed-requirements" ;;
    *) echo "$venv/installed-${1##*/}" ;;
  esac
}

# is_installed FILE: succeeds if the environment has the packages of the list as it is now.
is_installed() {
  local stamp
  stamp=$(stamp_of "$1")
  [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted_stamp "$1")" ]
}

# size_of FILE: prints what the packages of a list take, as measured on Linux x86-64 with Python 3.12.
size_of() {
  case $1 in
    scripts/lib/core_requirements.txt) echo "285 MB to download, 1.1 GB on disk; takes a few minutes" ;;
    requirements.txt) echo "2.4 GB on disk; takes several minutes" ;;
    *) echo "a few MB" ;;
  esac
}

pip_install() {
  "$python" -m pip install --disable-pip-version-check --progress-bar off "$@"
}

install_requirements() {
  "$python" -m pip --version || "$python" -m ensurepip || return
  pip_install -r "$1"
}

was_made_here() {
  local stamp
  for stamp in "$venv"/installed-*; do [ -e "$stamp" ] && return; done
  return 1
}

make_environment() {
  local interpreter
  if [ -e "$unfinished" ] || ! is_new_enough "$python"; then
    if [ -e "$venv" ] && [ ! -e "$unfinished" ] && ! was_made_here; then
      fail "$venv was not made by this script and has no Python 3.12 or newer that runs: move it away, and try again."
    fi
    interpreter=$(find_python)
    touch "$unfinished"
    quietly "Making $venv with $("$interpreter" --version)" "$interpreter" -m venv --clear "$venv"
  fi
  # requirements.txt has all packages of the shorter list.
  if ! is_installed requirements.txt && ! is_installed "$requirements"; then
    touch "$unfinished"
    quietly "Installing $requirements into $venv ($(size_of "$requirements"))" install_requirements "$requirements" ||
      fail "the packages could not be installed (pip's last lines are above); the same command tries again."
    wanted_stamp "$requirements" >"$(stamp_of "$requirements")"
    rm -f "$unfinished"
  fi
}

# Installs the packages of a file into the environment, again if they or those of requirements.txt changed.
install_more() {
  local name=${1##*/} wanted
  wanted=$(wanted_stamp "$requirements" "$1")
  if [ "$(cat "$venv/installed-$name" 2>/dev/null || true)" != "$wanted" ]; then
    quietly "Installing $name into $venv" pip_install -r "$1" ||
      fail "the packages of $1 could not be installed (pip's last lines are above); the same command tries again."
    echo "$wanted" >"$venv/installed-$name"
  fi
}

make_environment
[ -z "${more_requirements:-}" ] || install_more "$more_requirements"
