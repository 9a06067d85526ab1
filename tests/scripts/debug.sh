# shellcheck shell=bash disable=SC2154 # variables of run
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What scripts/debug-kernel makes of a kernel's configuration, and which kernels it
# has the tests run on.

# ask LINE...: what tests/guest/debug.config says.
ask() {
    checkout
    printf '%s\n' "$@" >"$tmp/repo/tests/guest/debug.config"
}

# check SERIES LINE...: look at a kernel's configuration with these lines.
check() {
    local series=$1
    shift
    printf '%s\n' "$@" >"$tmp/config"
    run "$tmp/repo/scripts/debug-kernel" --kernel "$series" --check-config "$tmp/config"
}

test_a_configuration_that_keeps_all_is_taken() {
    ask '# text' CONFIG_A=y 'CONFIG_B="x y"' '# absent on newest: CONFIG_C=m: it has another name' CONFIG_C=m
    check stable CONFIG_A=y 'CONFIG_B="x y"' CONFIG_C=m
    is 0 "$status"
    check newest CONFIG_A=y 'CONFIG_B="x y"' '# CONFIG_D is not set'
    is 0 "$status"
}

test_every_line_that_is_not_kept_is_named() {
    ask CONFIG_A=y CONFIG_B=m CONFIG_C=y CONFIG_CC=y
    check stable '# CONFIG_A is not set' CONFIG_B=y CONFIG_CC=y
    is 1 "$status"
    said "the stable kernel" "CONFIG_A=y: not kept; the kernel has: # CONFIG_A is not set" \
        "CONFIG_B=m: not kept; the kernel has: CONFIG_B=y" \
        "CONFIG_C=y: not kept; the kernel has: no such option" "absent on stable: LINE: REASON"
    not_said "CONFIG_CC=y: not kept"
}

test_absence_on_one_kernel_is_none_on_the_other() {
    ask '# absent on newest: CONFIG_A=y: it has another name' CONFIG_A=y
    check stable '# CONFIG_A is not set'
    is 1 "$status"
    said "CONFIG_A=y: not kept"
}

test_a_line_said_to_be_absent_but_kept_is_named() {
    ask '# absent on newest: CONFIG_A=y: it has another name' CONFIG_A=y
    check newest CONFIG_A=y
    is 1 "$status"
    said "CONFIG_A=y: kept, though said to be absent for: it has another name"
}

test_a_word_of_absence_needs_a_line_and_a_reason() {
    ask '# absent on newest: CONFIG_A=y' '# absent on stable: CONFIG_B=y: gone' CONFIG_A=y
    check stable CONFIG_A=y
    is 1 "$status"
    said "CONFIG_A=y: said to be absent on newest, but not why" \
        "CONFIG_B=y: said to be absent on stable, but asked for nowhere"
    # Misspelt, it is not passed over.
    ask '# absent on oldest: CONFIG_A=y: gone' CONFIG_A=y
    check stable CONFIG_A=y
    is 1 "$status"
    said "CONFIG_A=y: said to be absent on oldest, which is no kernel"
}

# a_lab: one in which what makes a kernel only writes down the name of the series, and
# makes what there is of a kernel afterwards.
a_lab() {
    checkout
    stub lab <<'END'
[[ $1 != --path ]] || exit
mkdir -p "$BUFSHARE_LAB/root/lab"
echo "ROOT=$BUFSHARE_LAB/root" >"$BUFSHARE_LAB/lab.env"
for series in stable newest; do
    [[ -e $BUFSHARE_LAB/root/lab/kernel-$series.env ]] ||
        printf 'KERNEL_SERIES=%s\nKERNEL_RELEASE=6.12\nKERNEL_VERSION=6.12-1\n' $series >"$BUFSHARE_LAB/root/lab/kernel-$series.env"
    ln -sfn "root/lab/kernel-$series.env" "$BUFSHARE_LAB/kernel-$series.env"
done
END
    stub in-lab <<'END'
echo "gcc 14"
END
    stub test <<END
echo "\$* in \$BUFSHARE_LAB, times \$BUFSHARE_TIMEOUT_FACTOR" >>$tmp/tests
END
    # shellcheck disable=SC2016 # for the script
    sed -i 's/^        (make_kernel) 9>&-$/        stand_in/' "$tmp/repo/scripts/debug-kernel"
    # shellcheck disable=SC2016 # for the script
    sed -i '/^# have_kernel SERIES/i\
stand_in() {\
    echo "$KERNEL_SERIES" >>"$MADE"\
    mkdir -p "$built/usr/lib/modules/debug" "$built/usr/src/linux-headers-debug"\
    echo image >"$built/usr/lib/modules/debug/vmlinuz"\
    echo debug >"$built/release"\
    echo "$stamp" >"$built/stamp"\
}' "$tmp/repo/scripts/debug-kernel"
    [[ $(grep -c '^ *stand_in' "$tmp/repo/scripts/debug-kernel") == 2 ]]
    export MADE=$tmp/made
    : >"$MADE"
}

test_the_tests_run_on_the_kernels_that_were_asked_for() {
    local kernel
    a_lab
    unset BUFSHARE_TIMEOUT_FACTOR
    for kernel in stable newest all; do
        : >"$tmp/tests"
        : >"$MADE"
        rm -rf "$tmp/lab-debug"
        run "$tmp/repo/scripts/debug-kernel" --kernel "$kernel" -- one_test
        is 0 "$status"
        # Its failures count on any kernel.
        is "--vm --strict --kernel $kernel -- one_test in $tmp/lab-debug, times 8" "$(<"$tmp/tests")"
        is "${kernel/all/stable newest}" "$(paste -sd ' ' "$MADE")"
    done
    : >"$MADE"
    rm -rf "$tmp/lab-debug"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is stable "$(<"$MADE")"
    run "$tmp/repo/scripts/debug-kernel" --kernel other
    is 1 "$status"
    said "unknown kernel 'other'"
}

test_a_kernel_is_made_once_also_when_the_lab_is_made_anew() {
    local lab=$tmp/lab-debug env=$tmp/lab-debug/kernel-stable.env
    a_lab
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 0 "$status"
    grep -qx 'KERNEL_RELEASE=debug' "$env"
    rm -rf "$lab/root"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 0 "$status"
    is stable "$(<"$MADE")"
    grep -qx 'KERNEL_RELEASE=debug' "$env"
    is image "$(<"$lab/root/usr/lib/modules/debug/vmlinuz")"
    # What Debian's kernel is has been written anew, and no more.
    sed -i 's/^KERNEL_RELEASE=.*/KERNEL_RELEASE=6.12/' "$env"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 0 "$status"
    is stable "$(<"$MADE")"
    grep -qx 'KERNEL_RELEASE=debug' "$env"
    # Another configuration makes another kernel.
    echo "# another" >>"$tmp/repo/tests/guest/debug.config"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 0 "$status"
    is "stable stable" "$(paste -sd ' ' "$MADE")"
}

# As backports does when it takes a newer kernel; the lab keeps the one that it has.
test_a_source_that_the_archive_has_no_more_is_named_with_the_way_out() {
    a_lab
    cp "$REPO/scripts/debug-kernel" "$tmp/repo/scripts/"
    an_empty_archive
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 1 "$status"
    said "the archive has no linux-source-6.12" \
        "BUFSHARE_LAB=$tmp/lab-debug scripts/lab --force --kernel stable"
    not_said "Run scripts/debug-kernel again"
}

# scripts/lab asks for the name of an archive, also when it makes the lab of these kernels.
test_the_archive_that_scripts_lab_was_given_is_used() {
    a_lab
    sed -i "1a echo \"\${BUFSHARE_MIRROR:-none}\" >$tmp/mirror-of-lab" "$tmp/repo/scripts/lab"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is none "$(<"$tmp/mirror-of-lab")"
    mkdir -p "$tmp/lab"
    echo http://archive.invalid/one >"$tmp/lab/mirror"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is http://archive.invalid/one "$(<"$tmp/mirror-of-lab")"
    # Its own, named later, as scripts/lab remembers it.
    echo http://archive.invalid/two >"$tmp/lab-debug/mirror"
    touch -d '1 minute ago' "$tmp/lab/mirror"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is none "$(<"$tmp/mirror-of-lab")"
    # And once more another, for want of the second.
    touch -d '1 minute' "$tmp/lab/mirror"
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is http://archive.invalid/one "$(<"$tmp/mirror-of-lab")"
    # What is said at the command holds.
    run "$tmp/repo/scripts/debug-kernel" --build-only --mirror http://archive.invalid/three
    is http://archive.invalid/three "$(<"$tmp/mirror-of-lab")"
    BUFSHARE_MIRROR=http://archive.invalid/four run "$tmp/repo/scripts/debug-kernel" --build-only
    is http://archive.invalid/four "$(<"$tmp/mirror-of-lab")"
}

test_a_full_disk_is_said_before_the_lab_is_made() {
    local free
    a_lab
    # Of a lab 2000, of the first kernel 4000, of another 1000 more.
    for free in 5999 6000; do
        rm -rf "$tmp/lab-debug"
        a_disk $free
        run "$tmp/repo/scripts/debug-kernel" --build-only
        is $((free < 6000)) "$status"
    done
    a_disk 6999
    rm -rf "$tmp/lab-debug"
    run "$tmp/repo/scripts/debug-kernel" --build-only --kernel all
    is 1 "$status"
    said "only 6999 MB free" "7000 MB are needed" "BUFSHARE_LAB"
    [[ ! -e $tmp/lab-debug ]] || fail "it began"
    # What is there needs no room.
    a_disk 7000
    run "$tmp/repo/scripts/debug-kernel" --build-only --kernel all
    is 0 "$status"
    a_disk 9
    run "$tmp/repo/scripts/debug-kernel" --build-only --kernel all
    is 0 "$status"
}

test_what_an_interrupted_build_has_left_needs_no_room_again() {
    a_lab
    mkdir -p "$tmp/lab-debug/root" "$tmp/lab-debug/making-stable"
    fake du <<<"[[ \$* != *making-stable ]] || printf '3200\tx\n'"
    a_disk 999
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 1 "$status"
    said "only 999 MB free" "1000 MB are needed"
    a_disk 1000
    run "$tmp/repo/scripts/debug-kernel" --build-only
    is 0 "$status"
    # Nor when it goes on.
    rm -rf "$tmp/lab-debug/built-stable"
    cp "$REPO/scripts/debug-kernel" "$tmp/repo/scripts/"
    an_empty_archive
    run "$tmp/repo/scripts/debug-kernel" --build-only
    said "the archive has no linux-source"
}

test_nothing_is_left_of_the_progress_lines() {
    local sleeper
    fake sleep <<END
[[ \$1 != 60 ]] || echo \$\$ >$tmp/sleeper
exec -a sleep /bin/sleep "\$1"
END
    sed -n '/^show_progress() {/,/^}/p' "$REPO/scripts/debug-kernel" >"$tmp/function"
    grep -q sleep "$tmp/function" || fail "there is no such function"
    # shellcheck disable=SC2016 # for the inner shell
    begin bash -c '. "$0"; show_progress $$ /nonexistent & wait || true' "$tmp/function"
    until_true "it sleeps" test -s "$tmp/sleeper"
    sleeper=$(<"$tmp/sleeper")
    # As make_kernel does at the end of a build.
    kill "$(awk '/^PPid:/ { print $2 }' "/proc/$sleeper/status")"
    until_true "the sleep ends" gone "$sleeper"
    wait "$job"
}

test_what_is_missing_is_said_before_a_kernel_is_made() {
    a_lab
    without cargo
    PATH=$tmp/bin:$hidden run "$tmp/repo/scripts/debug-kernel"
    is 1 "$status"
    said "cargo is not installed"
    is '' "$(<"$MADE")"
    BUFSHARE_LAB="$tmp/my lab" run "$tmp/repo/scripts/debug-kernel" --build-only
    is 1 "$status"
    said "no kernel can be built in a folder of this name: $tmp/my lab-debug"
    is '' "$(<"$MADE")"
    run "$tmp/repo/scripts/debug-kernel" --accel fast
    is 1 "$status"
    said "'fast' is no accelerator"
}
