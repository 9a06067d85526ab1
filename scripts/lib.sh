#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Helpers shared by the scripts of this folder. Source it, do not run it:
#
#     . "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
#
# It sets REPO (the checkout), LAB (the lab's folder, see scripts/lab) and
# TARGET (cargo's target folder), all absolute, and defines the functions
# below. A script that has sourced it ends its children when it ends: a trap for EXIT
# of its own has to call end_children.

# With it cd may go elsewhere, and says where.
unset CDPATH
REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
LAB=${BUFSHARE_LAB:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/bufshare/lab}
[[ $LAB == /* ]] || LAB=$PWD/$LAB
TARGET=${CARGO_TARGET_DIR:-$REPO/target}
[[ $TARGET == /* ]] || TARGET=$PWD/$TARGET
export REPO LAB TARGET
# For cargo, which may be set up to build elsewhere, and for programs in other folders.
export BUFSHARE_LAB=$LAB CARGO_TARGET_DIR=$TARGET

# The kernel that the scripts and tests take when nobody names one (by --kernel or
# $BUFSHARE_KERNEL): see kernel_series.
DEFAULT_KERNEL=${BUFSHARE_KERNEL:-stable}

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

# As tests/src/factor.rs has it.
[[ ${BUFSHARE_TIMEOUT_FACTOR:-1} =~ ^([1-9][0-9]{0,2}|1000)$ ]] ||
    die "\$BUFSHARE_TIMEOUT_FACTOR is '$BUFSHARE_TIMEOUT_FACTOR' and has to be a whole number from 1 to 1000" \
        "Limits of time are multiplied by it; without it they are as they are."

# usage_from FILE: print FILE's leading comment (after the licence line) as help.
usage_from() {
    sed -n '3,/^[^#]/{/^#/!q; s/^# \{0,1\}//; p}' "$1" | sed '1{/^$/d}'
}

# end_children: end all processes that this shell has started, and theirs, and wait for
# that. A signal for a script alone would leave them at work, unseen, as would Ctrl-C
# those in the background.
end_children() {
    local -A ours=(["$BASHPID"]=1)
    local stat line pid more=1 end
    # Found by their parent; stopped, so that they start no more meanwhile.
    while ((more)); do
        more=0
        for stat in /proc/[0-9]*/stat; do
            pid=${stat//[^0-9]/}
            # It may have ended by now. The name, in parentheses, may hold anything.
            line=''
            { read -r -d '' line <"$stat" || true; } 2>/dev/null
            if [[ -z ${ours[$pid]:-} && ${line##*) } =~ ^[^Z]' '([0-9]+)' ' && -n ${ours[${BASH_REMATCH[1]}]:-} ]]; then
                ours[$pid]=1 more=1
                kill -STOP "$pid" 2>/dev/null || true
            fi
        done
    done
    unset "ours[$BASHPID]"
    ((${#ours[@]})) || return 0
    kill -TERM "${!ours[@]}" 2>/dev/null || true
    kill -CONT "${!ours[@]}" 2>/dev/null || true
    end=$((SECONDS + END_LIMIT))
    for pid in "${!ours[@]}"; do
        while grep -qsv '^[0-9]* (.*) Z' "/proc/$pid/stat"; do
            if ((SECONDS >= end)); then
                kill -KILL "$pid" 2>/dev/null || true
                break
            fi
            sleep 0.1
        done
    done
}
# Seconds for what it ends to end by itself. QEMU needs less than one of them.
END_LIMIT=10
trap end_children EXIT

# need_package PACKAGE...: they are installed when root, which is said; else it is said
# how to.
need_package() {
    command -v apt-get >/dev/null ||
        die "missing packages: $*, and this machine ($(os_name)) has no apt-get" \
            "The scripts need Debian's or Ubuntu's package manager: use a virtual machine" \
            "or a privileged container of Debian, with this checkout in it."
    if ((EUID != 0)); then
        die "missing packages: $*" "Run as root: apt-get install --no-install-recommends $*"
    fi
    info "installing on this machine what it lacks: $*"
    install_packages() { apt-get install -qq -y --no-install-recommends "$@" >&2; }
    install_packages "$@" || { apt-get update -qq >&2 && install_packages "$@"; } ||
        die "could not install: $*" "Install them by hand and try again."
}

# need_commands COMMAND:PACKAGE...: need_package for each that is missing.
need_commands() {
    local pair missing=()
    for pair; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    ((!${#missing[@]})) || need_package "${missing[@]}"
}

# os_name: of this machine, for people.
os_name() {
    (. /etc/os-release 2>/dev/null && printf '%s' "${PRETTY_NAME:-$ID}") || printf 'not Debian'
}

# need_target: a folder to build in, which the kernel's makefiles can use, too.
need_target() {
    [[ $TARGET != *[[:space:]:%]* ]] ||
        die "nothing can be built in a folder of this name: $TARGET" \
            "The kernel's makefiles take no blank, ':' or '%'. Set CARGO_TARGET_DIR to another folder."
    mkdir -p "$TARGET" 2>/dev/null && [[ -w $TARGET ]] ||
        die "cannot write in $TARGET" "Set CARGO_TARGET_DIR to a folder you may write to."
    # Little is added to what an earlier build has made.
    [[ -e $TARGET/debug || -e $TARGET/release ]] || need_space "$TARGET" "$TARGET_MB" CARGO_TARGET_DIR
}
# What the programs and the tests of a first run need there.
TARGET_MB=3000

# need_rust: cargo, new enough for this workspace, and what it links programs with.
need_rust() {
    local need have
    need=$(sed -n 's/^rust-version *= *"\(.*\)".*/\1/p' "$REPO/Cargo.toml")
    command -v cargo >/dev/null ||
        die "cargo is not installed" "Install Rust $need or newer: rustup (packaged as 'rustup' in Debian 13) gets it, by: rustup default stable"
    # rustup's, without a tool chain, fails.
    have=$(cargo --version | sed -n 's/^cargo \([0-9.]*\).*/\1/p') || true
    [[ $(printf '%s\n' "$need" "$have" | sort -V | head -n 1) == "$need" ]] ||
        die "cargo is ${have:-of an unknown version}, and Rust $need or newer is needed" \
            "With rustup: rustup update stable, and where none was chosen yet: rustup default stable." \
            "Debian 13's own cargo is too old; its package 'rustup' gets a newer one."
    # The guests' programs are static.
    need_commands cc:gcc
    [[ $(cc -print-file-name=libc.a) == /* ]] || need_package libc6-dev
}

# own_mounts: set UNSHARE to the words that run a command with mounts of its own; die
# if this machine does not allow them. Root without the right to mount, as in a
# container, may have it in a user namespace.
own_mounts() {
    mounts_work() {
        "${UNSHARE[@]}" -- mount -t tmpfs -o size=1m bufshare-lab "$LAB/mnt" 2>/dev/null
    }
    UNSHARE=(unshare --mount --propagation private)
    if ((EUID == 0)) && mounts_work; then
        return
    fi
    UNSHARE+=(--user --map-root-user)
    ! mounts_work || return 0
    ((EUID != 0)) ||
        die "root may not mount anything here (a container without CAP_SYS_ADMIN?)" \
            "Give the container that right: --privileged; or --cap-add SYS_ADMIN with" \
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined." \
            "Or use a virtual machine."
    die "this user may not make user namespaces" \
        "As root allow it: sysctl kernel.unprivileged_userns_clone=1 (older Debian)" \
        "or: sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu);" \
        "or run this as root."
}

# need_space FOLDER MEGABYTES [VARIABLE]: die unless FOLDER's file system has that much
# room. VARIABLE names such folders, by default $BUFSHARE_LAB. FOLDER may not exist yet.
need_space() {
    local free folder=$1
    while [[ ! -e $folder ]]; do folder=$(dirname -- "$folder"); done
    free=$(df -Pm -- "$folder" | awk 'NR == 2 { print $4 }')
    ((free >= $2)) ||
        die "only $free MB free in $1, $2 MB are needed" \
            "Free some space, or set ${3:-BUFSHARE_LAB} to a new folder on a larger disk."
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

# kernel_release SERIES: of the lab's kernel; nothing if there is none.
kernel_release() {
    # shellcheck disable=SC1090
    (. "$LAB/kernel-$1.env" && printf '%s\n' "$KERNEL_RELEASE") 2>/dev/null || true
}

# recorded SERIES: tests/kernels.toml says that every test passes on the lab's kernel.
recorded() {
    local release
    release=$(kernel_release "$1")
    # Of a kernel that is not there nothing is.
    [[ -n $release ]] && awk -v series="$1" -v release="$release" '
        function value() { sub(/^[^=]*=[ \t]*"/, ""); sub(/".*/, ""); return $0 }
        /^\[/ { in_kernel = /^\[\[kernel\]\]/; s = r = "" }
        in_kernel && /^series[ \t]*=/ { s = value() }
        in_kernel && /^release[ \t]*=/ { r = value() }
        in_kernel && s == series && r == release { found = 1 }
        END { exit !found }' "$REPO/tests/kernels.toml"
}

# any_recorded: that of at least one kernel of the lab.
any_recorded() {
    recorded stable || recorded newest
}

# trial_image ROOT FOLDER TEXT: make FOLDER/image.cpio, by the commands of the lab's
# ROOT: the smallest guest there is, whose init says TEXT on the console and ends.
trial_image() {
    mkdir -p "$2/image"/{bin,dev}
    install -m 755 "$1/usr/bin/busybox" "$2/image/bin/busybox"
    cat >"$2/image/init" <<END
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
echo "$3" >/dev/console
/bin/busybox poweroff -f
END
    chmod 755 "$2/image/init"
    # shellcheck disable=SC2016 # for the lab's shell
    BUFSHARE_ROOT=$1 "$REPO/scripts/in-lab" sh -euc '
        cd "$1/image"
        find . -mindepth 1 | cpio -o -H newc --quiet --owner=0:0 >"$1/image.cpio"
    ' sh "$2"
}

# has_udmabuf [FILE]: whether this machine's /dev/udmabuf can be opened, as the tests ask.
# To open it alone would make a file of that name.
has_udmabuf() {
    local device=${1:-/dev/udmabuf}
    [[ -c $device ]] && (: <>"$device") 2>/dev/null
}

# unpack_revision COMMIT FOLDER: the files of that commit of this clone, in a folder of
# their own. Does nothing when they are there.
unpack_revision() {
    [[ ! -e $2/.complete ]] || return 0
    git -C "$REPO" cat-file -e "$1^{commit}" 2>/dev/null ||
        die "the commit $1 is not in this clone" "If it is a shallow one: git fetch --unshallow"
    step "unpacking ${1:0:12}"
    rm -rf -- "$2"
    mkdir -p "$2"
    git -C "$REPO" archive "$1" | tar -x -C "$2"
    : >"$2/.complete"
}

# digest FILE...: one hash over the names and contents of the files.
digest() {
    sha256sum -- "$@" | sha256sum | cut -d' ' -f1
}
