#!/usr/bin/env bash
# Make .venv from a lock file: `requirements/install.sh [cpu|gpu]`. Uses uv where it is there or can be
# installed, pip otherwise and where uv fails. Does nothing when nothing that decides the result has changed since.
set -euo pipefail
cd "$(dirname "$0")/.."
lock="requirements/${1:-cpu}.txt"
overrides=requirements/overrides.txt
stamp=".venv/.installed-$(cat "$lock" pyproject.toml "$overrides" requirements/install.sh | sha256sum | cut -c1-16)"
[ -e "$stamp" ] && exit 0

python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' ||
  { echo "Tilth needs Python 3.11 or 3.12; $python is $("$python" --version). Set PYTHON=/path/to/python3.12" >&2; exit 1; }
[ -x .venv/bin/pip ] || "$python" -m venv --clear .venv

# uv does not read pip's settings: hand over those that say where packages come from
links=()
for folder in ${PIP_FIND_LINKS:-}; do links+=(--find-links "$folder"); done
export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-}}"
[ -n "$UV_DEFAULT_INDEX" ] || unset UV_DEFAULT_INDEX

uv="$(command -v uv || true)"
if [ -z "$uv" ] && [ "${TILTH_INSTALLER:-}" != pip ] && .venv/bin/pip install -q uv 2>/dev/null; then uv=.venv/bin/uv; fi
installed=
if [ -n "$uv" ] && [ "${TILTH_INSTALLER:-}" != pip ] && "$uv" --version >/dev/null 2>&1; then
  if "$uv" pip install -q -p .venv/bin/python -r "$lock" --override "$overrides" "${links[@]}" &&
    "$uv" pip install -q -p .venv/bin/python --no-deps -e .; then
    installed=1
  else
    echo "uv could not install $lock; trying pip, which also reads pip.conf" >&2
  fi
fi
if [ -z "$installed" ]; then
  # torch first, with what its build needs (an index's CUDA build brings packages that the CPU lock does not name)
  .venv/bin/pip install -q -c "$lock" "$(grep '^torch==' "$lock")"
  .venv/bin/pip install -q --no-deps -r "$lock"
  .venv/bin/pip install -q --no-deps -e .
fi
rm -f .venv/.installed-*
touch "$stamp"
echo "installed $lock into .venv"
