#!/bin/sh
# The programs that the tests of the completions, the man page, the companions, the guides and the examples need, where
# they are missing.
for program in zsh fish mandoc man shellcheck crontab systemd-analyze start-stop-daemon pgrep ps ss setsid flock \
    unshare patch gcc; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -e /usr/share/bash-completion/bash_completion ] || missing="$missing bash-completion"
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
[ -z "$missing" ] && exit 0
packages="zsh fish mandoc man-db groff-base shellcheck cron systemd dpkg procps iproute2 util-linux bash-completion"
packages="$packages patch gcc libc6-dev"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # tox runs its environments in parallel, and apt-get knows no waiting.
    flock "$(dirname "$0")/../tox.ini" \
        sh -c "apt-get update -qq && apt-get install -qq -y --no-install-recommends $packages" && exit 0
fi
echo "Missing:$missing. On Debian or Ubuntu: sudo apt-get install $packages" >&2
exit 1
