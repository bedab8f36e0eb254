# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: finds a Python, makes .venv, installs jaxpost into it. Only defines functions.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." >/dev/null && pwd)
venv=$root/.venv
uv=$(type -P uv || true)
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

# What would make another Python, or another folder, answer for .venv.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX
export PYTHONNOUSERSITE=1

say() { printf '[%4ds] %s\n' "$SECONDS" "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Every place where a Python may be, the preferred ones first; a pyenv shim on the PATH may stand for none.
candidates() {
    local name pyenv=${PYENV_ROOT:-${HOME:-}/.pyenv}
    for name in python3.13 python3.12 python3.11 python3 python; do type -aP "$name" || true; done
    printf '%s\n' "$pyenv"/versions/3.{13,12,11}*/bin/python
    printf '%s\n' "${CONDA_PREFIX:-/opt/conda}/bin/python" "${HOME:-}"/{miniconda3,miniforge3,anaconda3}/bin/python
    [[ -z $uv ]] || "$uv" python find --no-python-downloads '>=3.11' 2>/dev/null || true
}

# Sets `python` to the first candidate that is new enough and can make a virtual environment.
find_python() {
    local candidate lacks_venv=
    while read -r candidate; do
        "$candidate" -c "$new_enough" </dev/null &>/dev/null || continue
        if [[ -n $uv ]] || "$candidate" -c 'import ensurepip, venv' </dev/null &>/dev/null; then
            python=$candidate
            return
        fi
        lacks_venv=$candidate
    done < <(if [[ -n ${PYTHON:-} ]]; then echo "$PYTHON"; else candidates; fi)
    [[ -z $lacks_venv ]] ||
        fail "$lacks_venv has no venv module: install it (Debian, Ubuntu: the package python3-venv), or uv."
    [[ -z ${PYTHON:-} ]] || fail "PYTHON=$PYTHON is no Python 3.11 or newer: name another one, or unset PYTHON."
    fail "no Python 3.11 or newer was found: install one, or name it as in PYTHON=/path/to/python3 $0"
}

make_venv() {
    find_python
    say "Making .venv with $("$python" --version) from $python"
    [[ ! -e $venv ]] || say "(the .venv that was there has no Python 3.11 or newer that runs)"
    rm -rf -- "$venv"
    if [[ -n $uv ]]; then
        "$uv" venv --python "$python" "$venv"
    else
        "$python" -m venv "$venv"
    fi || fail "$python could not make $venv; the lines above say why."
}

pip_install() {
    if [[ -n $uv ]]; then
        "$uv" pip install --python "$venv/bin/python" "$@"
    else
        # A .venv that uv made has no pip of its own.
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip
        "$venv/bin/python" -m pip install --disable-pip-version-check "$@"
    fi
}

# install EXTRAS: jaxpost with these extras (none: the base) into .venv, unless its stamp says that this was done.
install() {
    local what=jaxpost${1:+"[$1]"} stamp=$venv/.installed-${1:-base} state
    cd -- "$root"
    "$venv/bin/python" -c "$new_enough" &>/dev/null || make_venv
    state="$root $(cat pyproject.toml jaxpost/__init__.py | cksum)"
    if [[ -f $stamp && $(<"$stamp") == "$state" ]]; then
        say "$what is installed already"
        return
    fi
    say "Installing $what and what it needs into .venv (about 1 GB; a few minutes the first time)"
    pip_install -e ".${1:+[$1]}" || fail "the install did not finish: the lines above say why; then run $0 again."
    printf '%s\n' "$state" >"$stamp"
    say "Installed $what"
}
