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

# The kernel that the scripts and tests take when nobody names one: see kernel_series.
DEFAULT_KERNEL=${BUFSHARE_KERNEL:-newest}

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

# check_accel WORD: die unless WORD is one that scripts/accel takes.
check_accel() {
    case $1 in
        kvm | tcg | auto) ;;
        *) die "'$1' is no accelerator" "Say kvm, tcg or auto, by --accel or \$BUFSHARE_ACCEL." ;;
    esac
}

# kernel_series NAME: the series that NAME means, one a line: 'stable' is the kernel
# of Debian's stable release, 'newest' that of its backports suite, 'all' is both.
kernel_series() {
    case $1 in
        stable | newest) printf '%s\n' "$1" ;;
        all) printf '%s\n' stable newest ;;
        *) die "unknown kernel '$1'" "It is stable (Debian's own), newest (of backports) or all." ;;
    esac
}

# one_kernel NAME: die unless NAME is one series.
one_kernel() {
    [[ $1 == stable || $1 == newest ]] ||
        die "unknown kernel '$1'" "Here it is stable (Debian's own) or newest (of backports)."
}

# load_lab [SERIES [OPTION-OF-LAB...]]: make what is missing or outdated of the lab,
# then read lab.env and kernel-SERIES.env into the environment (ROOT, QEMU_VERSION,
# KERNEL_SERIES, KERNEL_RELEASE, KERNEL_IMAGE, ...).
load_lab() {
    local series=${1:-$DEFAULT_KERNEL}
    one_kernel "$series"
    # A machine that has the lab as its root was given it as it is, see scripts/nested.
    [[ -n ${BUFSHARE_IN_LAB:-} ]] || "$REPO/scripts/lab" --quiet --kernel "$series" "${@:2}"
    # shellcheck disable=SC1091
    . "$LAB/lab.env"
    # shellcheck disable=SC1090
    . "$LAB/kernel-$series.env"
}

# digest FILE...: one hash over the names and contents of the files.
digest() {
    sha256sum -- "$@" | sha256sum | cut -d' ' -f1
}
