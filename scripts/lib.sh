#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Helpers shared by the scripts of this folder. Source it, do not run it:
#
#     . "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
#
# It sets REPO (the checkout), LAB (the lab's folder, see scripts/lab) and
# TARGET (cargo's target folder), all absolute, and defines the functions
# below. It runs nothing else.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
LAB=${BUFSHARE_LAB:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/bufshare/lab}
[[ $LAB == /* ]] || LAB=$PWD/$LAB
TARGET=${CARGO_TARGET_DIR:-$REPO/target}
[[ $TARGET == /* ]] || TARGET=$PWD/$TARGET
export REPO LAB TARGET

LIB_STARTED=$SECONDS

# info TEXT...: one progress line, on stderr, so that stdout stays for results.
info() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

# step TEXT...: a progress line with the seconds since the script started.
step() {
    printf '%s: [%3d s] %s\n' "${0##*/}" "$((SECONDS - LIB_STARTED))" "$*" >&2
}

# warn TEXT...: something is not as it should be, the work goes on.
warn() {
    printf '%s: warning: %s\n' "${0##*/}" "$*" >&2
}

# die WHAT [WHAT_TO_DO...]: say what failed, then one line for each thing to do.
die() {
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    shift
    if (($#)); then
        printf '    %s\n' "$@" >&2
    fi
    exit 1
}

# usage_from FILE: print FILE's leading comment (after the licence line) as help.
usage_from() {
    sed -n '3,/^[^#]/{/^#/!q; s/^# \{0,1\}//; p}' "$1" | sed '1{/^$/d}'
}

# need_commands COMMAND:PACKAGE...: install what is missing when root, else say how.
need_commands() {
    local pair missing=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null ||
        die "missing packages: ${missing[*]}, and this machine has no apt-get" \
            "The scripts need Debian's or Ubuntu's package manager."
    if ((EUID != 0)); then
        die "missing packages: ${missing[*]}" \
            "Run as root: apt-get install --no-install-recommends ${missing[*]}"
    fi
    info "installing missing packages: ${missing[*]}"
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2 ||
        die "could not install: ${missing[*]}" "Run 'apt-get update' and try again."
}

# need_space FOLDER MEGABYTES: die unless FOLDER's file system has that much room.
need_space() {
    local free
    free=$(df -Pm -- "$1" | awk 'NR == 2 { print $4 }')
    ((free >= $2)) ||
        die "only $free MB free in $1, $2 MB are needed" \
            "Free some space, or set BUFSHARE_LAB to a folder on a larger disk."
}

# load_lab: make the lab if it is missing or outdated, then read lab.env into the
# environment (ROOT, KERNEL_RELEASE, KERNEL_IMAGE, QEMU_VERSION, ...).
load_lab() {
    "$REPO/scripts/lab" --quiet
    # shellcheck disable=SC1091
    . "$LAB/lab.env"
}

# digest FILE...: one hash over the names and contents of the files.
digest() {
    sha256sum -- "$@" | sha256sum | cut -d' ' -f1
}
