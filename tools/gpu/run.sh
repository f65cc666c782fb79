#!/usr/bin/env bash
# Run a command with what this pack holds, without network:
#
#     bash run.sh COMMAND [ARGUMENT...]
#
# Every call checks the pack; the first one also unpacks its images and installs its wheels: into PACK.unpacked beside the pack, or into
# the folder that CLUSTERQ_UNPACKED names. PYTHON names another interpreter than python3. In a checkout of clusterq the checkout's code
# runs, elsewhere the pack's own. The command finds the pack in CLUSTERQ_PACK.
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "Error: there is no command, expected one such as: bash run.sh python3 -m clusterq_gen doctor" >&2
    exit 2
fi
pack="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
site="$("${PYTHON:-python3}" "$pack/unpack.py")"
path="$site"
if [ -d gen ] && [ -d finetune ] && [ -d common ]; then
    path="$PWD/gen:$PWD/finetune:$PWD/common:$site"
fi
export CLUSTERQ_PACK="$pack" PATH="$site/bin:$PATH" PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}"
exec "$@"
