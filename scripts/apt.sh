#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Debian packages for scripts/lab and scripts/debug-kernel. Source it after lib.sh,
# do not run it. It sets SUITE, BACKPORTS and MIRROR (from $BUFSHARE_MIRROR, empty if
# this machine's APT configuration is to name it) and defines the functions below.
# They keep all they need in the folder $work, which the script sets and makes.

SUITE=trixie
BACKPORTS=$SUITE-backports
MIRROR=${BUFSHARE_MIRROR:-}
work=''

# apt in a tree of its own under $work: it never looks at this machine's packages
# or sources, but keeps its proxy and credential settings.
write_apt_config() {
    mkdir -p "$work"/apt/{etc/preferences.d,etc/trusted.gpg.d,etc/sources.list.d,lists/partial,archives/partial,state}
    : >"$work/apt/status"
    cat >"$work/apt/apt.conf" <<END
Dir::Etc::sourcelist "$work/apt/etc/sources.list";
Dir::Etc::sourceparts "$work/apt/etc/sources.list.d";
Dir::Etc::preferences "$work/apt/etc/preferences";
Dir::Etc::preferencesparts "$work/apt/etc/preferences.d";
Dir::Etc::trusted "$work/apt/etc/trusted.gpg";
Dir::Etc::trustedparts "$work/apt/etc/trusted.gpg.d";
Dir::State "$work/apt/state";
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::State::extended_states "$work/apt/state/extended_states";
Dir::Cache "$work/apt";
Dir::Cache::archives "$work/apt/archives";
Dir::Log "$work/apt/state";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Get::Assume-Yes "true";
APT::Keep-Downloaded-Packages "true";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::PDiffs "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::CNF;
END
}

# The machine's settings are read first, those of -c override them.
private_apt() {
    "$1" -c "$work/apt/apt.conf" "${@:2}"
}

# suite_of SERIES: where its kernel comes from.
suite_of() {
    if [[ $1 == stable ]]; then echo "$SUITE"; else echo "$BACKPORTS"; fi
}

# Debian's public keys: this machine's, or those of the package of that name from
# this machine's own archive (Ubuntu has it), which apt verifies.
find_keyring() {
    local have=/usr/share/keyrings/debian-archive-keyring deb suffix
    for suffix in gpg pgp; do
        if [[ -r $have.$suffix ]]; then
            printf '%s\n' "$have.$suffix"
            return
        fi
    done
    # Without what an interrupted run has loaded.
    rm -rf "$work/keyring"
    mkdir -p "$work/keyring"
    (
        cd "$work/keyring"
        apt-get -o APT::Sandbox::User=root download debian-archive-keyring >/dev/null
    ) || die "Debian's archive keys are missing here" \
        "Run as root: apt-get update && apt-get install debian-archive-keyring"
    deb=$(echo "$work"/keyring/*.deb)
    dpkg-deb -x "$deb" "$work/keyring"
    for suffix in gpg pgp; do
        if [[ -r $work/keyring$have.$suffix ]]; then
            printf '%s\n' "$work/keyring$have.$suffix"
            return
        fi
    done
    die "the package debian-archive-keyring holds no $have.gpg"
}

# Archives in this machine's APT configuration (either format) that serve a Debian
# suite. Whether one really is Debian's is proved later by its signature.
find_mirrors() {
    # shellcheck disable=SC2016 # $(...) is apt's own syntax
    apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 ~ /^(bullseye|bookworm|trixie|forky|duke|sid|oldoldstable|oldstable|stable|testing|unstable)(-updates|-backports)?$/ &&
            $2 !~ /^cdrom:/ && !seen[$2]++ { print $2 }'
}

# have_mirror: set the array mirrors to the archives to try; die if there is none.
have_mirror() {
    mirrors=()
    if [[ -n $MIRROR ]]; then
        mirrors=("$MIRROR")
    elif [[ -r $LAB/mirror ]]; then
        # that of the last time, where one had to be named
        mirrors=("$(<"$LAB/mirror")")
    else
        mapfile -t mirrors < <(find_mirrors)
    fi
    ((${#mirrors[@]})) ||
        die "this machine ($(os_name)) has no Debian archive in its APT configuration" \
            "Name one, once: scripts/${0##*/} --mirror URL, or BUFSHARE_MIRROR=URL before the command." \
            "URL is http://HOST/debian, with a HOST of the list 'Debian worldwide mirror sites'," \
            "or what stands before '$SUITE main' in a Debian machine's sources."
}

# read_lists: the package lists of the first mirror that serves both suites.
read_lists() {
    local keyring mirror
    have_mirror
    keyring=$(find_keyring)
    for mirror in "${mirrors[@]}"; do
        cat >"$work/apt/etc/sources.list" <<END
deb [signed-by=$keyring] $mirror $SUITE main
deb [signed-by=$keyring] $mirror $BACKPORTS main
END
        step "reading the package lists of $SUITE and $BACKPORTS"
        if private_apt apt-get update --error-on=any >"$work/apt.log" 2>&1; then
            [[ -z $MIRROR ]] || printf '%s\n' "$MIRROR" >"$LAB/mirror"
            return
        fi
        sed 's/^/    /' "$work/apt.log" | tail -n 5 >&2
    done
    die "no Debian archive could be read (tried: ${mirrors[*]})" \
        "Is the network up? Another archive: scripts/${0##*/} --mirror URL"
}
