#!/usr/bin/env bash
# Tries the tests under several versions of Python, with the newest and the oldest supported packages; warnings are
# errors. Needs uv (pip install uv), which fetches what is missing. One line for each combination; exit status 1 after a
# failure. Words are handed on to pytest: without any, all tests run, as in .ci/run.
#
#     tests/versions.sh
#     PYTHONS=3.13 PACKAGES=newest tests/versions.sh tests/likelihoods
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
for python in ${PYTHONS:-3.10 3.11 3.12 3.13}; do
  for packages in ${PACKAGES:-newest oldest}; do
    if [ "$packages" = oldest ] && [ "$python" = 3.13 ]; then
      continue  # numpy 1.26 and pandas 2.1 have no wheels for it
    fi
    scratch=$(mktemp -d)
    log="$scratch/log"
    constraint=()
    [ "$packages" = oldest ] && constraint=(--constraint .ci/oldest.txt)
    if uv venv --quiet --python "$python" "$scratch/venv" \
      && uv pip install --quiet --python "$scratch/venv/bin/python" "${constraint[@]}" -e '.[test]' \
      && "$scratch/venv/bin/python" -m pytest -n auto --dist worksteal "$@" >"$log" 2>&1; then
      echo "Python $python, $packages packages: $(tail -n 1 "$log")"
    else
      failed=1
      echo "Python $python, $packages packages: FAILED $( [ -f "$log" ] && tail -n 1 "$log")"
      [ -f "$log" ] && grep -E '^(FAILED|ERROR)' "$log" | head -n 20
    fi
    rm -rf "$scratch"
  done
done
exit "$failed"
