# shellcheck shell=bash disable=SC2154,SC2016 # variables of run; text for other shells
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# An archive whose newest packages do not work, and a lab that was made before. It is
# the real archive; what is unpacked of it is broken on the way, by a dpkg-deb of ours:
# broken-qemu takes the place of QEMU, broken-stable and broken-newest that of a kernel.

a_moving_archive() {
    local real
    real=$(command -v dpkg-deb)
    fake dpkg-deb <<END
"$real" "\$@" || exit
[[ \$1 == -x ]] || exit 0
put() {
    [[ -e $tmp/broken-\$1 ]] || return 0
    find "\$2" -name "\$3" -type f -exec cp $tmp/broken-\$1 {} ';'
}
case \${2##*/} in
    qemu-system-x86_*) put qemu "\$3/usr/bin" qemu-system-x86_64 ;;
    linux-image-*bpo* | linux-binary-*bpo* | linux-modules-*bpo*)
        release=\$(basename "\$2" | sed 's/^linux-[a-z]*-//; s/_.*//')
        put newest "\$3/boot" "vmlinuz-\$release"
        put newest "\$3/usr/lib/modules/\$release" vmlinuz
        ;;
    linux-image-*)
        release=\$(basename "\$2" | sed 's/^linux-[a-z]*-//; s/_.*//')
        put stable "\$3/boot" "vmlinuz-\$release"
        put stable "\$3/usr/lib/modules/\$release" vmlinuz
        ;;
esac
END
    printf '#!/bin/sh\nexit 1\n' >"$tmp/dead"
    # starts, but boots nothing
    printf '#!/bin/sh\n[ "$1" != --version ] || echo "QEMU emulator version 99.0"\nexit 1\n' >"$tmp/boots-nothing"
    chmod +x "$tmp/dead" "$tmp/boots-nothing"
    head -c 65536 /dev/zero >"$tmp/zeros"
}

# value FILE NAME: of the lab's env files.
value() {
    sed -n "s/^$2=//p" "$tmp/lab/$1.env"
}

# works KERNEL: QEMU and this kernel are there, whole.
works() {
    local version
    version=$("$REPO/scripts/in-lab" qemu-system-x86_64 --version | head -n 1)
    [[ $version == *"$(value lab QEMU_VERSION)"* && $version != *99.0* ]] || fail "QEMU is '$version'"
    [[ $(stat -c %s "$(value "kernel-$1" KERNEL_IMAGE)") -gt 1000000 ]] || fail "kernel $1 is broken"
    [[ -e $tmp/lab/root$(value "kernel-$1" KERNEL_HEADERS)/Makefile ]] || fail "kernel $1 has no headers"
    [[ -d $tmp/lab/root/usr/lib/modules/$(value "kernel-$1" KERNEL_RELEASE)/kernel ]] || fail "kernel $1 has no modules"
}

test_what_does_not_work_is_not_taken() {
    local lab=$REPO/scripts/lab made newest
    a_moving_archive

    echo "== a new machine cannot have a lab of packages that do not work"
    cp "$tmp/dead" "$tmp/broken-qemu"
    run "$lab" --kernel stable
    is 1 "$status"
    said "the archive's QEMU does not start" "has no packages that worked before"
    [[ ! -e $tmp/lab/root ]]
    rm "$tmp/broken-qemu"
    cp "$tmp/zeros" "$tmp/broken-stable"
    run "$lab" --kernel stable
    is 1 "$status"
    said "does not boot Linux 6." "(stable)" "has no packages that worked before"
    [[ ! -e $tmp/lab/root ]]
    rm "$tmp/broken-stable"

    echo "== nor the newest kernel, if that is the one; the lab works without it"
    run "$lab" --kernel stable
    is 0 "$status"
    works stable
    cp "$tmp/zeros" "$tmp/broken-newest"
    run "$lab" --kernel newest
    is 1 "$status"
    said "NOT TAKEN FROM THE ARCHIVE" "(newest)" "this machine has none that worked"
    [[ ! -e $tmp/lab/kernel-newest.env ]]
    works stable
    run "$lab" --kernel stable
    is 0 "$status"
    said "up to date"
    rm "$tmp/broken-newest"
    run "$lab" --kernel newest
    is 0 "$status"
    works newest
    newest=$(value kernel-newest KERNEL_RELEASE)
    run "$lab" --passed --kernel all
    is 0 "$status"

    echo "== a lab that works stays if QEMU does not"
    made=$(stat -c %i "$tmp/lab/root")
    cp "$tmp/boots-nothing" "$tmp/broken-qemu"
    run "$lab" --force
    is 0 "$status"
    said "NOT TAKEN FROM THE ARCHIVE" "QEMU 99.0 does not boot Linux" "The lab stays as it was" "--force"
    is "$made" "$(stat -c %i "$tmp/lab/root")"
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
    [[ $(stat -c %i "$tmp/lab/root") != "$made" ]]
    is "$made" "$(stat -c %i "$tmp/lab/kept")"
    works stable
    works newest
    "$REPO/scripts/in-lab" ls -L "/lib/modules/$newest/build/Makefile"
    rm "$tmp/broken-newest"

    echo "== the old packages stay until the new have passed with both kernels"
    run "$lab" --passed --kernel stable
    is "$made" "$(stat -c %i "$tmp/lab/kept")"
    run "$lab" --back
    is 0 "$status"
    is "$made" "$(stat -c %i "$tmp/lab/root")"
    [[ ! -e $tmp/lab/kept ]]
    works newest
    run "$lab" --kernel all
    is 0 "$status"
    said "up to date" "gone back"
}
