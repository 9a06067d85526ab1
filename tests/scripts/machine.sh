# shellcheck shell=bash disable=SC2154,SC2016 # variables of run; text for other shells
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What the scripts need of the machine is looked at before anything is downloaded.

# no_download: nothing began.
no_download() {
    not_said "package lists" "downloading"
    [[ ! -e $tmp/lab/making && ! -e $tmp/lab-ran ]] || fail "something began"
}

# an_archive: apt knows a Debian archive, and can get nothing but its keys, where this
# machine has none.
an_archive() {
    fake apt-get <<'END'
case " $* " in
    *" indextargets "*) echo "trixie http://archive.invalid/debian" ;;
    *" download debian-archive-keyring "*) ;;
    *) exit 100 ;;
esac
END
    fake dpkg-deb <<<'mkdir -p "$3/usr/share/keyrings" && : >"$3/usr/share/keyrings/debian-archive-keyring.gpg"'
}

test_an_old_cargo_is_refused() {
    local need script
    need=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    fake cargo <<<'echo "cargo 1.63.0 (fd9c4297c 2022-07-01)"'
    for script in demo test; do
        run "$tmp/repo/scripts/$script"
        is 1 "$status"
        said "cargo is 1.63.0" "Rust $need or newer" "rustup"
        no_download
    done
    # As many digits do not make it newer, nor fewer older.
    fake cargo <<<"echo 'cargo $need (0 2000-01-01)'"
    run bash -c ". $REPO/scripts/lib.sh; need_rust"
    is 0 "$status"
    fake cargo <<<"echo 'cargo 1.100.0 (0 2000-01-01)'"
    run bash -c ". $REPO/scripts/lib.sh; need_rust"
    is 0 "$status"
}

test_a_factor_of_time_limits_that_cannot_be_used_is_refused() {
    local factor
    for factor in 1.5 0 -1 1001 abc; do
        BUFSHARE_TIMEOUT_FACTOR=$factor run bash -c ". $REPO/scripts/lib.sh"
        is 1 "$status"
        said "is '$factor' and has to be a whole number"
    done
    for factor in '' 1 8 1000; do
        BUFSHARE_TIMEOUT_FACTOR=$factor run bash -c ". $REPO/scripts/lib.sh"
        is 0 "$status"
    done
}

# As of Debian 13's rustup before a tool chain was chosen.
test_a_cargo_that_says_nothing_is_refused() {
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    fake cargo <<'END'
echo "error: rustup could not choose a version of cargo to run" >&2
exit 1
END
    run "$tmp/repo/scripts/demo"
    is 1 "$status"
    said "cargo is of an unknown version" "rustup default stable"
    no_download
}

# It is for people at a prompt, but some export it.
test_cdpath_does_not_lead_to_another_checkout() {
    checkout
    mkdir -p "$tmp/other/scripts"
    cd "$tmp/repo" || exit
    export CDPATH=.:$tmp/other
    run bash -c 'cd scripts && cd .. && . scripts/lib.sh && printf "%s\n" "$REPO" >"$0"' "$tmp/found"
    is 0 "$status"
    is "$tmp/repo" "$(<"$tmp/found")"
    CDPATH=$tmp/other:. run scripts/lab --path
    is "$tmp/lab" "$(<"$tmp/out")"
    # Those that do not source lib.sh first.
    cp -r "$REPO/tests/scripts" "$tmp/repo/tests/"
    printf 'test_nothing() {\n    echo "$REPO" >%q\n}\n' "$tmp/found" >"$tmp/repo/tests/scripts/debug.sh"
    mkdir -p "$tmp/other/tests/scripts"
    CDPATH=$tmp/other:. run tests/scripts/run debug
    is 0 "$status"
    is "$tmp/repo" "$(<"$tmp/found")"
    CDPATH=. run tests/scripts/run debug
    is "$tmp/repo" "$(<"$tmp/found")"
}

test_udmabuf_is_a_device_that_opens_and_none_is_made() {
    local has='. "$1/scripts/lib.sh"; has_udmabuf "$2"'
    run bash -c "$has" sh "$REPO" "$tmp/udmabuf"
    is 1 "$status"
    [[ ! -e $tmp/udmabuf ]] || fail "a file was made"
    : >"$tmp/udmabuf"
    run bash -c "$has" sh "$REPO" "$tmp/udmabuf"
    is 1 "$status"
    # No terminal is behind it in a session of its own.
    run setsid -w bash -c "$has" sh "$REPO" /dev/tty
    is 1 "$status"
    not_said "/dev/tty"
    run bash -c "$has" sh "$REPO" /dev/null
    is 0 "$status"
}

test_no_cargo_is_said() {
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    without cargo
    PATH=$hidden run "$tmp/repo/scripts/demo"
    is 1 "$status"
    said "cargo is not installed" "rustup"
    no_download
}

test_a_missing_command_is_installed_by_root_alone() {
    without flock
    fake apt-get <<<"echo \"apt-get \$*\" >>$tmp/apt; exit 100"
    PATH=$tmp/bin:$hidden run "$REPO/scripts/lab"
    is 1 "$status"
    if ((EUID == 0)); then
        said "installing on this machine what it lacks: util-linux" "could not install: util-linux"
        grep -q '^apt-get install .* util-linux$' "$tmp/apt"
    else
        said "missing packages: util-linux" "Run as root: apt-get install"
        [[ ! -e $tmp/apt ]] || fail "it called apt-get"
    fi
    no_download
}

test_a_machine_without_mounts_is_refused() {
    may_mount
    an_archive
    fake unshare <<<'exit 1'
    run "$REPO/scripts/lab"
    is 1 "$status"
    if ((EUID == 0)); then
        said "root may not mount anything here" "--cap-add SYS_ADMIN"
    else
        said "this user may not make user namespaces" "sysctl"
    fi
    no_download
}

# The rights to mount and to make namespaces are really taken away here.
test_root_that_may_not_mount_is_refused() {
    may_mount
    an_archive
    # shellcheck disable=SC2016 # for the inner shell
    run unshare --user --map-root-user sh -c '
        echo 0 >/proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$1"
    ' sh "$REPO/scripts/lab"
    is 1 "$status"
    said "root may not mount anything here" "--cap-add SYS_ADMIN"
    no_download
}

test_root_without_the_right_to_mount_uses_a_user_namespace() {
    may_mount
    # shellcheck disable=SC2016 # for the inner shell
    run unshare --user --map-root-user setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin bash -c '
        . "$1/scripts/lib.sh"
        mkdir -p "$LAB/mnt"
        own_mounts
        echo "words: ${UNSHARE[*]}"
        "${UNSHARE[@]}" -- mount -t tmpfs none "$LAB/mnt"
    ' bash "$REPO"
    is 0 "$status"
    said "--map-root-user"
}

test_a_folder_of_other_files_is_no_lab() {
    may_mount
    an_archive
    mkdir -p "$tmp/lab/root"
    echo mine >"$tmp/lab/root/file"
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "$tmp/lab holds other files" "Set BUFSHARE_LAB"
    no_download
    run "$REPO/scripts/lab" --clean
    is 1 "$status"
    said "not made by scripts/lab"
    is root/file "$(cd "$tmp/lab" && find . -type f | cut -c 3-)"
    # Nor a name in it for a folder of its own, which goes again.
    BUFSHARE_LAB=$tmp/lab/own run "$REPO/scripts/lab"
    said "no Debian archive could be read"
    BUFSHARE_LAB=$tmp/lab/own run "$REPO/scripts/lab" --clean
    is 0 "$status"
    is root "$(ls -A "$tmp/lab")"
}

# As a disk does that was empty when the lab was made on it.
test_a_lab_is_removed_without_the_files_beside_it() {
    may_mount
    an_archive
    a_lab
    mkdir -p "$tmp/lab/photos" "$tmp/lab/built-stable" "$tmp/lab/making" "$tmp/lab/revision-1"
    touch "$tmp/lab/accel-6.12-11.1" "$tmp/lab/lock"
    run "$REPO/scripts/lab" --clean
    is 0 "$status"
    said "$tmp/lab is left, with what scripts/lab did not make: photos"
    is photos "$(ls -A "$tmp/lab")"
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "$tmp/lab holds other files"
}

test_a_full_disk_is_said() {
    local script
    may_mount
    an_archive
    a_disk 77
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "only 77 MB free" "BUFSHARE_LAB"
    no_download
    # cargo's folder may be on another.
    checkout
    stub lab <<<"touch $tmp/lab-ran; exit 1"
    fake cargo <<<'echo "cargo 1.999.0 (0 2000-01-01)"'
    a_disk 2999
    for script in demo test; do
        run "$tmp/repo/scripts/$script"
        is 1 "$status"
        said "only 2999 MB free in $tmp/target" "3000 MB are needed" "CARGO_TARGET_DIR"
        no_download
    done
    # In which most of it is there already.
    mkdir -p "$tmp/target/release"
    run "$tmp/repo/scripts/demo"
    not_said "MB free"
}

# What apt says then is of packages.
test_a_disk_that_fills_up_is_not_the_archives_fault() {
    may_mount
    an_empty_archive
    fake apt-cache <<'END'
case " $* " in
    *" madison "*) echo "linux-image-amd64 | 1 | http://archive.invalid/debian trixie/main amd64 Packages" ;;
    *" show "*) echo "Depends: linux-image-6.12.1-amd64 (= 1)" ;;
esac
END
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "apt cannot resolve the packages" "try scripts/lab again tomorrow"
    rm -rf "$tmp/lab"
    # It is looked at once before.
    fake df <<END
[[ -e $tmp/seen ]] && free=99 || free=99999
: >$tmp/seen
printf 'x\n/dev/x 9 8 %s 9%% /\n' \$free
END
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "only 99 MB free in $tmp/lab"
    not_said "cannot resolve" "tomorrow"
}

test_a_machine_that_is_not_debian_is_asked_for_a_mirror() {
    may_mount
    fake apt-get <<'END'
[[ $1 == indextargets ]] || exit 100
echo "noble http://archive.invalid/ubuntu"
END
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "has no Debian archive in its APT configuration" "scripts/lab --mirror URL" "http://HOST/debian"
    no_download
    # Of all scripts the same, and with the name of a script that knows the option.
    checkout
    fake cargo <<<'echo "cargo 1.999.0 (0 2000-01-01)"'
    run "$tmp/repo/scripts/demo"
    is 1 "$status"
    said "scripts/lab --mirror URL"
    no_download
}

test_a_mirror_is_remembered() {
    may_mount
    fake apt-get <<'END'
[[ " $* " != *" update "* && " $* " != *" autoclean "* ]] || exit 0
echo "apt-get: nothing more" >&2
exit 100
END
    fake dpkg-deb <<<'mkdir -p "$3/usr/share/keyrings" && : >"$3/usr/share/keyrings/debian-archive-keyring.gpg"'
    fake apt-cache <<<'echo "linux-image-amd64 | 0 | http://archive.invalid/debian none/main amd64 Packages"'
    mkdir -p "$tmp/lab"
    run "$REPO/scripts/lab" --mirror http://archive.invalid/debian
    said "package lists" "the archive has no kernel"
    run "$REPO/scripts/lab"
    not_said "--mirror"
    said "package lists"
    grep -q '] http://archive.invalid/debian trixie main' "$tmp/lab/making/apt/etc/sources.list"
}

# Where the lab is another user's, and as it should be.
test_an_archive_that_cannot_be_remembered_is_no_failure() {
    may_mount
    an_empty_archive
    a_lab
    run "$REPO/scripts/lab"
    is 0 "$status"
    # As root may write every file.
    mkdir "$tmp/lab/mirror"
    BUFSHARE_MIRROR=http://archive.invalid/debian run "$REPO/scripts/lab"
    is 0 "$status"
    said "up to date"
    not_said "mirror:"
}

# An earlier run may have ended after it had loaded an older package.
test_the_archives_keys_are_those_of_the_package_loaded_last() {
    checkout
    fake apt-get <<<': >new.deb'
    fake dpkg-deb <<<'[[ -e $2 ]] && mkdir -p "$3/none" && : >"$3/none/debian-archive-keyring.gpg"'
    # This machine's may be there.
    sed -i 's,have=/usr/share/keyrings/,have=/none/,' "$tmp/repo/scripts/apt.sh"
    mkdir "$tmp/keyring"
    touch "$tmp/keyring/old.deb"
    run bash -c '. "$1/scripts/lib.sh"; . "$1/scripts/apt.sh"; work=$2; find_keyring' sh "$tmp/repo" "$tmp"
    is 0 "$status"
    said "$tmp/keyring/none/debian-archive-keyring.gpg"
}

# Also where the signal is for the script alone, and so not for a command of its own.
test_an_interrupted_download_ends() {
    may_mount
    fake apt-get <<END
case " \$* " in
    *" --print-uris "*) echo "'http://archive.invalid/a.deb' a.deb 1000000 SHA256:0" ;;
    *" --download-only "*)
        echo \$\$ >$tmp/apt.pid
        exec sleep 600
        ;;
esac
END
    fake apt-cache <<'END'
case " $* " in
    *" madison "*) echo "linux-image-amd64 | 1 | http://archive.invalid/debian trixie/main amd64 Packages" ;;
    *" show "*) echo "Depends: linux-image-6.12.1-amd64 (= 1)" ;;
esac
END
    fake dpkg-deb <<<'mkdir -p "$3/usr/share/keyrings" && : >"$3/usr/share/keyrings/debian-archive-keyring.gpg"'
    local apt to
    for to in "-INT -- -" "-TERM " "-HUP "; do
        rm -f "$tmp/apt.pid"
        begin "$REPO/scripts/lab" --mirror http://archive.invalid/debian
        until_true "the download begins" test -s "$tmp/apt.pid"
        apt=$(<"$tmp/apt.pid")
        # shellcheck disable=SC2086 # words
        kill $to$job
        until_true "scripts/lab ends by $to" gone "$job"
        gone "$apt" || fail "apt-get goes on after kill $to"
    done
}

# a_lab: one that another version of scripts/lab made, as far as that can be seen.
a_lab() {
    mkdir -p "$tmp/lab/root/lab"
    : >"$tmp/lab/.bufshare-lab"
    echo 1 >"$tmp/lab/root/lab/layout"
    echo "QEMU_VERSION=9.9" >"$tmp/lab/root/lab/lab.env"
    echo older >"$tmp/lab/root/lab/base.stamp"
}

test_without_an_archive_a_lab_that_is_there_stays_in_use() {
    may_mount
    an_archive
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "no Debian archive could be read"
    a_lab
    run "$REPO/scripts/lab"
    is 0 "$status"
    said "no Debian archive could be read" "the lab stays as it is, QEMU 9.9"
    # Not if it lacks what is asked for, nor if newer packages are.
    run "$REPO/scripts/lab" --with tools
    is 1 "$status"
    run "$REPO/scripts/lab" --force
    is 1 "$status"
    [[ -e $tmp/lab/root/lab/base.stamp ]] || fail "the lab is gone"
}

test_a_lab_of_another_checkout_is_said() {
    may_mount
    an_empty_archive
    a_lab
    echo /elsewhere >"$tmp/lab/root/lab/checkout"
    run "$REPO/scripts/lab"
    is 0 "$status"
    said "those of /elsewhere, made this lab" "BUFSHARE_LAB"
    # Its own it only makes anew.
    echo older >"$tmp/lab/root/lab/base.stamp"
    run "$REPO/scripts/lab"
    is 0 "$status"
    said "making the lab"
    not_said "other scripts"
}

test_a_lab_in_the_making_is_not_removed() {
    a_lab
    exec 7>"$tmp/lab/lock"
    flock 7
    begin "$REPO/scripts/lab" --clean 7>&-
    until_true "it waits" grep -q "another scripts/lab is at work" "$tmp/out"
    [[ -e $tmp/lab/root ]] || fail "the lab is gone"
    exec 7>&-
    wait "$job"
    [[ ! -e $tmp/lab ]] || fail "the lab is there"
}

# Whoever waits for the lab finds it gone.
test_a_lab_is_removed_while_others_wait_for_it() {
    local jobs=() n
    a_lab
    exec 7>"$tmp/lab/lock"
    flock 7
    for n in 1 2; do
        begin "$REPO/scripts/lab" --clean 7>&-
        jobs+=("$job")
        until_true "it waits" grep -q "another scripts/lab is at work" "$tmp/out"
        mv "$tmp/out" "$tmp/out.$n"
    done
    exec 7>&-
    for n in 1 2; do
        wait "${jobs[n - 1]}" || fail "one ends badly: $(<"$tmp/out.$n")"
    done
    [[ ! -e $tmp/lab ]] || fail "the lab is there"
}

# As that of a kernel which backports has replaced by a newer one.
test_source_that_the_archive_lacks_is_asked_for_again() {
    local checkpatch=usr/src/linux-headers-6.12.1-amd64/checkpatch
    may_mount
    an_empty_archive
    a_lab
    echo older >"$tmp/lab/root/lab/kernel-stable.stamp"
    mkdir -p "$tmp"/lab/root/{boot,usr/lib/modules/6.12.1-amd64}
    : >"$tmp/lab/root/usr/lib/modules/6.12.1-amd64/vmlinuz"
    printf 'KERNEL_RELEASE=6.12.1-amd64\nKERNEL_VERSION=6.12.1-1\nCHECKPATCH=/%s/checkpatch.pl\n' $checkpatch \
        >"$tmp/lab/root/lab/kernel-stable.env"
    # The lab without the source is as it should be from then on.
    run "$REPO/scripts/lab"
    is 0 "$status"
    for _ in 1 2; do
        : >"$tmp/asked"
        run "$REPO/scripts/lab" --with source
        is 0 "$status"
        said "checkpatch and sparse are not available: the archive has no package linux-source-6.12"
        grep -q 'linux-source-6.12' "$tmp/asked" || fail "it did not ask for the source again"
    done
    # The rest of the lab needs no second look.
    : >"$tmp/asked"
    run "$REPO/scripts/lab"
    said "up to date"
    is '' "$(<"$tmp/asked")"
    # Without an archive the lab is used as it is.
    an_archive
    run "$REPO/scripts/lab" --with source
    is 0 "$status"
    said "the lab stays as it is"
    # It is there once it was found.
    rm "$tmp/lab/root/$checkpatch/unavailable"
    run "$REPO/scripts/lab" --with source
    is 0 "$status"
    said "up to date"
    # But not if it could not be loaded.
    : >"$tmp/lab/root/$checkpatch/unavailable"
    an_empty_archive
    touch "$tmp/found"
    for _ in 1 2; do
        run "$REPO/scripts/lab" --with source
        is 1 "$status"
        said "the download failed"
    done
}

# As of a checkout in /usr/src.
test_a_folder_below_usr_is_the_machines_in_every_command() {
    local file root=$tmp/root
    may_mount
    mkdir -p "$root"/{etc,var} "$root"/usr/{bin,lib,lib64} "$tmp/lab/mnt"
    for file in ls env; do
        cp "$(command -v $file)" "$root/usr/bin/"
        ldd "$(command -v $file)" | grep -o '/[^ ]*' | sed 's,^/usr/,/,' | (cd / && xargs cp -Lu --parents -t "$root/usr")
    done
    export BUFSHARE_ROOT=$root
    for _ in 1 2; do
        run "$REPO/scripts/in-lab" --bind /usr/share --bind /etc/passwd -- ls -s --block-size=1 /usr/share /etc/passwd
        is 0 "$status"
        said base-files
        ! grep -q '^0 /etc/passwd' "$tmp/out" || fail "a file is empty"
    done
    # What the lab has is its own.
    run "$REPO/scripts/in-lab" --bind /usr/bin -- ls /usr/bin
    is "env ls" "$(paste -sd ' ' "$tmp/out")"
}

# a_module: a driver in $tmp/module, and a copy whose lab builds an empty file of it.
a_module() {
    checkout
    mkdir -p "$tmp/lab/root/var/lib/dpkg" "$tmp/lab/root/checkpatch" "$tmp/module"
    : >"$tmp/lab/root/var/lib/dpkg/status"
    echo "ROOT=$tmp/lab/root" >"$tmp/lab/lab.env"
    printf 'KERNEL_RELEASE=6.12\nCHECKPATCH=/checkpatch/checkpatch.pl\n' >"$tmp/lab/kernel-stable.env"
    : >"$tmp/module/Kbuild"
    stub lab <<<''
    stub in-lab <<'END'
for word; do [[ $word != M=* ]] || : >"${word#M=}/x.ko"; done
END
}

test_a_folder_of_other_files_is_not_built_in() {
    a_module
    mkdir "$tmp/out-stable"
    : >"$tmp/out-stable/mine"
    run "$tmp/repo/scripts/build-module" --source "$tmp/module" "$tmp/out"
    is 1 "$status"
    said "$tmp/out-stable holds other files" "another OUTDIR"
    is mine "$(ls -A "$tmp/out-stable")"
    rm "$tmp/out-stable/mine"
    # Its own are replaced.
    for _ in 1 2; do
        run "$tmp/repo/scripts/build-module" --source "$tmp/module" "$tmp/out"
        is 0 "$status"
        echo "# another" >>"$tmp/module/Kbuild"
    done
}

test_a_revision_of_another_format_is_not_timed() {
    a_module
    mkdir -p "$tmp/repo/protocol/include"
    cp "$REPO/protocol/include/virtio_bufshare.h" "$tmp/repo/protocol/include/"
    fake git <<'EOF'
case "$*" in
    *" show "*) printf '#define VIRTIO_BUFSHARE_VERSION\t\t1\n' ;;
    *) echo abc1234 ;;
esac
EOF
    run "$tmp/repo/scripts/bench" compare abc1234
    is 1 "$status"
    said "abc1234 has version 1 of the wire format" "name a revision that has version 2"
}

test_a_benchmark_takes_what_its_mode_knows() {
    local words
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    for words in "compare abc1234 --quick" "profile --rounds 3" "profile --quick" "--frames 3" \
        "--size 640x480"; do
        # shellcheck disable=SC2086 # words
        run "$tmp/repo/scripts/bench" $words
        is 1 "$status"
        said "is not for this"
    done
    for words in "abc1234" "--quick abc1234" "profile abc1234"; do
        # shellcheck disable=SC2086 # words
        run "$tmp/repo/scripts/bench" $words
        is 1 "$status"
        said "'abc1234' is not something to do"
    done
    run "$tmp/repo/scripts/bench" --rounds 0
    is 1 "$status"
    said "--rounds needs a number"
    run "$tmp/repo/scripts/bench" compare abc1234 --size 640
    is 1 "$status"
    said "--size needs WIDTHxHEIGHT"
    run "$tmp/repo/scripts/bench" compare
    is 1 "$status"
    said "which revision?"
    no_download
}

test_a_profile_needs_perf() {
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    without perf
    PATH=$hidden run "$tmp/repo/scripts/bench" profile
    is 1 "$status"
    said "this machine has no perf" "linux-perf"
    no_download
}

test_a_revision_that_this_clone_lacks_is_named() {
    local commit
    a_module
    cp "$REPO/tests/compat.toml" "$tmp/repo/tests/"
    commit=$(sed -n 's/^first = "\(.*\)"/\1/p' "$tmp/repo/tests/compat.toml")
    fake cargo <<<'echo "cargo 1.999.0 (0 2000-01-01)"'
    fake git <<<'exit 1'
    run "$tmp/repo/scripts/build-revision"
    is 1 "$status"
    said "the commit $commit is not in this clone" "git fetch --unshallow"
    run "$tmp/repo/scripts/build-revision" unheard-of
    is 1 "$status"
    said "tests/compat.toml names no revision 'unheard-of'"
}

test_a_check_of_the_driver_that_is_skipped_fails_in_ci() {
    local lack=$tmp/lab/root/checkpatch/unavailable
    a_module
    echo "the archive has no package linux-source-6.12" >"$lack"
    run "$tmp/repo/scripts/build-module" --check --source "$tmp/module"
    is 0 "$status"
    said "checkpatch: skipped: the archive has no package linux-source-6.12"
    # At the end, where it is seen.
    tail -n 2 "$tmp/out" | grep -q 'warning: not checked by checkpatch: the archive' || fail "it is not said at the end"
    for _ in 1 2; do
        CI=true run "$tmp/repo/scripts/build-module" --check --source "$tmp/module"
        is 1 "$status"
        said "not checked by checkpatch: the archive has no package linux-source-6.12"
    done
    rm "$lack"
    CI=true run "$tmp/repo/scripts/build-module" --check --source "$tmp/module"
    is 0 "$status"
    said "checkpatch --strict: no findings"
    not_said ": skipped:"
    # sparse is left out by the kernel's own makefiles, which say so.
    rm -rf "$tmp/target"
    stub in-lab <<'END'
for word; do [[ $word != M=* ]] || : >"${word#M=}/x.ko"; done
[[ $1 != make ]] || echo "Makefile:1311: C=2 specified, but sparse is not available or not up to date"
END
    CI=true run "$tmp/repo/scripts/build-module" --check --source "$tmp/module"
    is 1 "$status"
    said "not checked by sparse"
}

test_an_interrupted_change_of_roots_is_undone() {
    may_mount
    an_archive
    a_lab
    mv "$tmp/lab/root" "$tmp/lab/kept"
    run "$REPO/scripts/lab"
    is 0 "$status"
    said "the lab stays as it is, QEMU 9.9"
}

test_a_folder_in_which_nothing_can_be_built_is_said() {
    local script
    checkout
    stub lab <<<"touch $tmp/lab-ran"
    fake cargo <<<'echo "cargo 1.999.0 (0 2000-01-01)"'
    : >"$tmp/file"
    for script in demo test; do
        CARGO_TARGET_DIR="$tmp/a folder" run "$tmp/repo/scripts/$script"
        is 1 "$status"
        said "$tmp/a folder" "Set CARGO_TARGET_DIR"
        no_download
        CARGO_TARGET_DIR=$tmp/file/target run "$tmp/repo/scripts/$script"
        is 1 "$status"
        said "cannot write in $tmp/file/target" "Set CARGO_TARGET_DIR"
        no_download
    done
}

# a_ci: a copy whose .ci/run only writes down, in $tmp/calls, what it calls.
a_ci() {
    local script
    checkout
    cp -r "$REPO/.ci" "$tmp/repo/"
    mkdir "$tmp/repo/tests/scripts"
    : >"$tmp/repo/tests/scripts/run"
    chmod +x "$tmp/repo/tests/scripts/run"
    fake git <<<'echo scripts/lib.sh'
    fake cargo <<<''
    for script in lab in-lab build-module demo bench capi nested test; do
        stub "$script" <<<"echo \"$script \$*\" >>$tmp/calls"
    done
}

test_ci_builds_in_cargos_target_folder_alone() {
    local has nested
    a_ci
    for has in true false; do
        : >"$tmp/calls"
        # Whatever this machine has.
        echo "has_udmabuf() { $has; }" >>"$tmp/repo/scripts/lib.sh"
        run "$tmp/repo/.ci/run"
        is 0 "$status"
        grep -q "^build-module --check --source tests/guest/importer $tmp/target/importer-module --kernel stable$" "$tmp/calls"
        grep -q "$tmp/target/release/vhost-device-bufshare$" "$tmp/calls"
        ! grep -E '(^| )target/' "$tmp/calls" || fail "it uses the checkout's target/"
        # With udmabuf, another host is needed for the rest.
        nested=$(grep -E '^nested |--nested' "$tmp/calls" | paste -sd ,)
        [[ $has == true ]] || is "test --nested --kernel all" "$nested"
        [[ $has == false ]] || is "$(printf 'nested --test %s --kernel %s\n' vhost_net stable vhost_net newest systemd stable systemd newest | paste -sd ,)" "$nested"
    done
}

test_ci_reports_a_newest_kernel_that_cannot_be_had() {
    local recorded
    a_ci
    stub lab <<<'[[ " $* " != *" newest "* ]]'
    recorded=$(sed -n '/^series = "stable"/{n; s/^release = //p}' "$tmp/repo/tests/kernels.toml")
    mkdir "$tmp/lab"
    echo "KERNEL_RELEASE=$recorded" >"$tmp/lab/kernel-stable.env"
    run "$tmp/repo/.ci/run"
    is 0 "$status"
    said "REPORTED: failed on a kernel that tests/kernels.toml does not record: scripts/lab --with source --kernel newest"
    # Unless no other is recorded.
    echo "KERNEL_RELEASE=unseen" >"$tmp/lab/kernel-stable.env"
    run "$tmp/repo/.ci/run"
    is 1 "$status"
    said "failed with the kernel newest: scripts/lab --with source"
}

test_wrong_words_for_the_demo_are_refused_at_once() {
    local words
    a_disk 99999
    fake cargo <<<'echo "cargo 1.999.0 (0 2000-01-01)"'
    for words in "--frmaes 5" "--frames many" "--size 1920" "--size 6000x64" "--size 64x32" "--kernel=newest" "--out /usr/out" "--out a,b" "--accel fast"; do
        # shellcheck disable=SC2086 # two words
        run "$REPO/scripts/demo" $words
        is 1 "$status"
        said "demo: error:"
        no_download
    done
}

test_an_unknown_kernel_is_refused() {
    local script
    for script in lab demo test nested guest-image build-module; do
        run "$REPO/scripts/$script" --kernel 6.12
        is 1 "$status"
        said "unknown kernel '6.12'" "stable"
        no_download
    done
}
