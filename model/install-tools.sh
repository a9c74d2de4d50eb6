#!/bin/sh
# spin, and the compiler that it needs, where they are missing; no Python package brings them.
command -v spin >/dev/null && command -v cc >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # tox runs its environments in parallel, and apt-get knows no waiting.
    flock "$(dirname "$0")/../tox.ini" \
        sh -c "apt-get update -qq && apt-get install -qq -y --no-install-recommends spin gcc libc6-dev" && exit 0
fi
echo "The model needs spin and a C compiler. On Debian or Ubuntu: sudo apt-get install spin gcc libc6-dev" >&2
exit 1
