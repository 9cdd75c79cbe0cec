#!/bin/sh
# Make .venv with the Python named as the first argument, or the first one found that will do.
set -u
found=""
for candidate in ${1:-python3.12 python3.13 python3.14 python3 python}; do
    version=$("$candidate" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then
        exec "$candidate" -m venv --clear .venv
    fi
    found="$found $candidate is $version;"
done
echo "llama_jax needs Python >= 3.12; found:${found:- none;} install one, or name it: make PYTHON=/path/to/python3.12" >&2
exit 2
