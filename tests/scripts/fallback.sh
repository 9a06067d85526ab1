# shellcheck shell=bash disable=SC2154,SC2016 # variables of run; text for other shells
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# An archive whose newest packages do not work, and a lab that was made before. The
# packages are made of the lab that is there, $GIVEN_LAB, and the archive is of ours, so
# that nothing depends on what the real one has today: the files of the base, and the
# stable kernel, once as itself and once as the newest. What is unpacked of them is broken
# on the way: broken-qemu takes the place of QEMU, broken-stable and broken-newest that of
# a kernel.

# a_moving_archive: sets stable and newest to the releases of its kernels, and made_lab to
# the lab that is made: in cargo's folder, as it has hundreds of MB and /tmp may be memory.
a_moving_archive() {
    local version=1
    [[ -e $GIVEN_LAB/kernel-stable.env && -e $GIVEN_LAB/root/lab/base.stamp ]] ||
        fail "there is no lab to take packages from: make it by scripts/lab"
    # shellcheck disable=SC1091 # of the lab
    stable=$(. "$GIVEN_LAB/kernel-stable.env" && echo "$KERNEL_RELEASE")
    newest=${stable%-amd64}-bpo-amd64
    fake apt-get <<END
# apt-get [-c FILE] COMMAND [OPTION...] [PACKAGE...]
[[ \$1 != -c ]] || archives=\$(sed -n 's/^Dir::Cache::archives "\(.*\)";/\1/p' "\$2")
case " \$* " in
    *" indextargets "*) echo "trixie http://archive.invalid/debian" ;;
    *" update "* | *" autoclean "*) ;;
    *" install "*)
        for package; do
            case \$package in
                linux-*-amd64 | qemu-system-x86) deb=\${package}_${version}_amd64.deb ;;
                *) continue ;;
            esac
            case " \$* " in
                *" --print-uris "*) echo "'http://archive.invalid/\$deb' \$deb 1000000 SHA256:0" ;;
                *" --download-only "*) : >"\$archives/\$deb" ;;
            esac
        done
        ;;
    # of find_keyring, where this machine has none
    *" download debian-archive-keyring "*) : >keyring.deb ;;
    *)
        echo "apt-get: not known here: \$*" >&2
        exit 100
        ;;
esac
END
    fake apt-cache <<END
case " \$* " in
    *" madison "*)
        echo "linux-image-amd64 | 1-1 | http://archive.invalid/debian trixie/main amd64 Packages"
        echo "linux-image-amd64 | 2-1 | http://archive.invalid/debian trixie-backports/main amd64 Packages"
        ;;
    *=1-1" ") echo "Depends: linux-image-$stable (= 1-1)" ;;
    *=2-1" ") echo "Depends: linux-image-$newest (= 2-1)" ;;
esac
END
    fake dpkg-deb <<END
set -e
package=\${2##*/} package=\${package%%_*} from=\$(printf %q "$GIVEN_LAB")/root to=\$3
if [[ \$1 == -f ]]; then
    printf 'Package: %s\nVersion: 1\n' "\$package"
    exit
fi
put() {
    [[ -e $tmp/broken-\$1 ]] || return 0
    find "\$2" -name "\$3" -type f -exec cp --remove-destination $tmp/broken-\$1 {} ';'
}
# Copies, never links: the lab that they are of is in use.
copy() {
    mkdir -p "\$to/\$1"
    cp -a --reflink=auto "\$from/\$1/." "\$to/\$1/"
}
case \$package in
    keyring.deb)
        mkdir -p "\$to/usr/share/keyrings"
        : >"\$to/usr/share/keyrings/debian-archive-keyring.gpg"
        ;;
    qemu-system-x86)
        for folder in bin sbin lib64 lib/x86_64-linux-gnu share/qemu share/seabios share/base-passwd; do
            copy usr/\$folder
        done
        copy etc/ld.so.conf.d
        cp "\$from/etc/ld.so.conf" "\$to/etc/"
        put qemu "\$to/usr/bin" qemu-system-x86_64
        ;;
    linux-image-*)
        release=\${package#linux-image-} source=\$from/usr/lib/modules/$stable modules=\$to/usr/lib/modules/\${package#linux-image-}
        mkdir -p "\$modules/kernel/drivers" "\$to/boot"
        cp -a "\$source"/modules.{order,builtin,builtin.modinfo} "\$modules/"
        cp -a "\$source/kernel/drivers/virtio" "\$modules/kernel/drivers/"
        # Debian has had it in either place.
        if [[ \$release == $stable ]]; then
            cp "\$source/vmlinuz" "\$to/boot/vmlinuz-\$release"
            put stable "\$to/boot" "vmlinuz-\$release"
        else
            cp "\$source/vmlinuz" "\$modules/vmlinuz"
            put newest "\$modules" vmlinuz
        fi
        ;;
    linux-headers-*)
        release=\${package#linux-headers-}
        mkdir -p "\$to/usr/src/\$package" "\$to/usr/lib/modules/\$release"
        cp "\$from/usr/src/linux-headers-$stable/Makefile" "\$to/usr/src/\$package/"
        ln -s "../../../src/\$package" "\$to/usr/lib/modules/\$release/build"
        ;;
esac
END
    printf '#!/bin/sh\nexit 1\n' >"$tmp/dead"
    # starts, but boots nothing
    printf '#!/bin/sh\n[ "$1" != --version ] || echo "QEMU emulator version 99.0"\nexit 1\n' >"$tmp/boots-nothing"
    chmod +x "$tmp/dead" "$tmp/boots-nothing"
    head -c 65536 /dev/zero >"$tmp/zeros"
    made_lab=$GIVEN_TARGET/lab-of-fallback
    rm -rf --one-file-system -- "$made_lab"
    trap 'rm -rf --one-file-system -- "$made_lab"' EXIT
    export BUFSHARE_LAB=$made_lab
}

# value FILE NAME: of the lab's env files.
value() {
    sed -n "s/^$2=//p" "$made_lab/$1.env"
}

# works KERNEL: QEMU and this kernel are there, whole.
works() {
    local version
    version=$("$REPO/scripts/in-lab" qemu-system-x86_64 --version | head -n 1)
    [[ $version == *"$(value lab QEMU_VERSION)"* && $version != *99.0* ]] || fail "QEMU is '$version'"
    [[ $(stat -c %s "$(value "kernel-$1" KERNEL_IMAGE)") -gt 1000000 ]] || fail "kernel $1 is broken"
    [[ -e $made_lab/root$(value "kernel-$1" KERNEL_HEADERS)/Makefile ]] || fail "kernel $1 has no headers"
    [[ -d $made_lab/root/usr/lib/modules/$(value "kernel-$1" KERNEL_RELEASE)/kernel ]] || fail "kernel $1 has no modules"
}

# The packages are not blamed for it.
test_a_machine_without_memory_is_said() {
    a_moving_archive
    printf '#!/bin/sh\n%s\n' '[ "$1" != --version ] || { echo "QEMU emulator version 11.1.3"; exit; }' \
        >"$tmp/killed"
    cp "$tmp/killed" "$tmp/refused"
    echo 'echo "qemu: cannot set up guest memory: Cannot allocate memory" >&2; exit 1' >>"$tmp/refused"
    echo 'kill -KILL $$' >>"$tmp/killed"
    chmod +x "$tmp/killed" "$tmp/refused"
    cp "$tmp/refused" "$tmp/broken-qemu"
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "this machine lacks the memory for a guest of 512 MB" "cannot set up guest memory"
    not_said "does not boot" "tomorrow"
    cp "$tmp/killed" "$tmp/broken-qemu"
    run "$REPO/scripts/lab"
    is 1 "$status"
    said "QEMU was killed after" "lack memory"
    not_said "does not boot" "tomorrow"
}

test_what_does_not_work_is_not_taken() {
    local lab=$REPO/scripts/lab made
    a_moving_archive

    echo "== a new machine cannot have a lab of packages that do not work"
    cp "$tmp/dead" "$tmp/broken-qemu"
    run "$lab" --kernel stable
    is 1 "$status"
    said "the archive's QEMU does not start" "has no packages that worked before"
    [[ ! -e $made_lab/root ]]
    rm "$tmp/broken-qemu"
    cp "$tmp/zeros" "$tmp/broken-stable"
    run "$lab" --kernel stable
    is 1 "$status"
    said "does not boot Linux $stable (stable)" "has no packages that worked before"
    [[ ! -e $made_lab/root ]]
    rm "$tmp/broken-stable"

    echo "== nor the newest kernel, if that is the one; the lab works without it"
    run "$lab" --kernel stable
    is 0 "$status"
    works stable
    cp "$tmp/zeros" "$tmp/broken-newest"
    run "$lab" --kernel newest --with source --with tools
    is 1 "$status"
    said "NOT TAKEN FROM THE ARCHIVE" "(newest)" "this machine has none that worked"
    [[ ! -e $made_lab/kernel-newest.env ]]
    # What needs the kernel is left out, what comes after it is there.
    not_said "No such file"
    [[ -e $made_lab/root/lab/tools.stamp ]]
    works stable
    run "$lab" --kernel stable
    is 0 "$status"
    said "up to date"
    rm "$tmp/broken-newest"
    run "$lab" --kernel newest
    is 0 "$status"
    works newest
    is "$newest" "$(value kernel-newest KERNEL_RELEASE)"
    run "$lab" --passed --kernel all
    is 0 "$status"

    echo "== a lab that works stays if QEMU does not"
    made=$(stat -c %i "$made_lab/root")
    cp "$tmp/boots-nothing" "$tmp/broken-qemu"
    run "$lab" --force
    is 0 "$status"
    said "NOT TAKEN FROM THE ARCHIVE" "QEMU 99.0 does not boot Linux" "The lab stays as it was" "--force"
    is "$made" "$(stat -c %i "$made_lab/root")"
    works stable
    works newest
    echo "== and says so until it is another"
    run "$lab" --kernel all
    is 0 "$status"
    said "up to date" "warning: QEMU 99.0 does not boot Linux"
    rm "$tmp/broken-qemu"

    echo "== of a new lab, the newest kernel is the old one if the new does not boot"
    cp "$tmp/zeros" "$tmp/broken-newest"
    run "$lab" --force
    is 0 "$status"
    said "NOT TAKEN FROM THE ARCHIVE" "does not boot Linux $newest (newest)" "Linux $newest stays"
    [[ $(stat -c %i "$made_lab/root") != "$made" ]]
    is "$made" "$(stat -c %i "$made_lab/kept")"
    works stable
    works newest
    "$REPO/scripts/in-lab" ls -L "/lib/modules/$newest/build/Makefile"
    rm "$tmp/broken-newest"

    echo "== the old packages stay until the new have passed with both kernels"
    run "$lab" --passed --kernel stable
    is "$made" "$(stat -c %i "$made_lab/kept")"
    run "$lab" --back
    is 0 "$status"
    is "$made" "$(stat -c %i "$made_lab/root")"
    [[ ! -e $made_lab/kept ]]
    works newest
    run "$lab" --kernel all
    is 0 "$status"
    said "up to date" "gone back"
}
