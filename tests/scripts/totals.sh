# shellcheck shell=bash disable=SC2154,SC2016 # variables of run; text for other shells
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What scripts/test makes of its results, with a cargo that only prints some. In $tmp
# are fails-SERIES (names of tests that fail in VMs with it) and no-SERIES (there is no
# such kernel).

RECORDED=1.0-recorded
UNSEEN=9.9-unseen

# a_run RELEASE-OF-STABLE RELEASE-OF-NEWEST
a_run() {
    checkout
    mkdir -p "$tmp/lab"
    echo "KERNEL_RELEASE=$1" >"$tmp/lab/kernel-stable.env"
    echo "KERNEL_RELEASE=$2" >"$tmp/lab/kernel-newest.env"
    cat >"$tmp/repo/tests/kernels.toml" <<END
# [[kernel]]
# release = "$UNSEEN"
[[fault]]
series = "newest"
release = "$UNSEEN"
[[kernel]]
series = "stable"
release = "$RECORDED"
[[kernel]]
series = "newest"
release = "$RECORDED"
END
    stub lab <<END
echo "\$*" >>$tmp/lab-calls
for word; do [[ ! -e $tmp/no-\$word ]] || { rm -f $tmp/lab/kernel-\$word.env; exit 1; }; done
END
    echo >"$tmp/lab/lab.env"
    stub guest-image <<<''
    stub accel <<<'echo tcg'
    stub build-module <<<''
    stub build-revision <<<''
    stub nested <<<'echo "nested: RETRY: the machine ended"; echo "test result: ok. 3 passed; 0 failed; 0 ignored"'
    fake cargo <<END
case " \$* " in
    *" --version "*) echo "cargo 1.999.0 (0 2000-01-01)" ;;
    *" build "*) ;;
    *" --exclude "*) echo "test result: ok. 100 passed; 0 failed; 1 ignored; 0 measured" ;;
    *" --lib "*) echo "test result: ok. 10 passed; 0 failed; 0 ignored; 0 measured" ;;
    *)
        echo "test two_vms ... ok"
        echo "a_test_that_cannot: no udmabuf" >>$tmp/target/test-logs/skipped
        bad=\$(cat $tmp/fails-\$BUFSHARE_KERNEL 2>/dev/null)
        for name in \$bad; do echo "test \$name ... FAILED"; done
        [[ -z \$bad ]] && word=ok || word=FAILED
        echo "test result: \$word. 5 passed; \$(wc -w <<<"\$bad") failed; 0 ignored; 0 measured"
        [[ -z \$bad ]] || echo "error: test failed, to rerun pass \\\`--test x\\\`"
        [[ ! -e $tmp/dies ]] || echo "error: test failed, to rerun pass \\\`--test y\\\`"
        [[ -z \$bad && ! -e $tmp/dies ]]
        ;;
esac
END
    # It tests these scripts, too.
    rm -rf "$tmp/repo/tests/scripts"
}

last() {
    tail -n 1 "$tmp/out"
}

# not_kept WORDS: the lab was not called by these to remember its packages.
not_kept() {
    ! grep -q -- "$1" "$tmp/lab-calls" || fail "scripts/lab was called by '$1'"
}

test_kernels_are_added_up() {
    a_run "$RECORDED" "$RECORDED"
    run "$tmp/repo/scripts/test" --kernel all
    is 0 "$status"
    said "Linux $RECORDED (stable): 4 passed, 0 failed, 1 skipped" "Linux $RECORDED (newest): 4 passed" \
        "a_test_that_cannot: no udmabuf (newest)"
    is "118 passed, 0 failed, 3 skipped" "$(last)"
    # The lab remembers the packages.
    grep -q -- '--passed --kernel stable' "$tmp/lab-calls"
    grep -q -- '--passed --kernel newest' "$tmp/lab-calls"
}

# As one of another user's, which is used as it is.
test_a_lab_that_cannot_remember_them_fails_no_test() {
    a_run "$RECORDED" "$RECORDED"
    touch "$tmp/no---passed"
    run "$tmp/repo/scripts/test" --vm
    is 0 "$status"
    said "the lab does not remember that its packages have passed"
    is "4 passed, 0 failed, 1 skipped" "$(last)"
}

test_one_kernel_is_the_default() {
    a_run "$RECORDED" "$RECORDED"
    run "$tmp/repo/scripts/test" --vm
    is "4 passed, 0 failed, 1 skipped" "$(last)"
    # A choice of tests proves nothing.
    rm "$tmp/lab-calls"
    run "$tmp/repo/scripts/test" --vm -- two_vms
    is "4 passed, 0 failed, 1 skipped" "$(last)"
    not_kept --passed
}

test_a_failure_on_a_recorded_kernel_fails() {
    a_run "$RECORDED" "$RECORDED"
    echo "bad_one bad_two" >"$tmp/fails-newest"
    for ci in '' true; do
        CI=$ci run "$tmp/repo/scripts/test" --kernel all
        is 1 "$status"
        said "bad_one (newest)" "bad_two (newest)" "(newest): 4 passed, 2 failed, 1 skipped"
        not_said REPORTED
        is "118 passed, 2 failed, 3 skipped" "$(last)"
    done
    not_kept '--passed --kernel newest'
    grep -q -- '--passed --kernel stable' "$tmp/lab-calls"
}

test_a_failure_on_an_unseen_kernel_is_reported() {
    a_run "$RECORDED" "$UNSEEN"
    echo "bad_one" >"$tmp/fails-newest"
    run "$tmp/repo/scripts/test" --kernel all
    is 0 "$status"
    said "bad_one (newest)" "Linux $UNSEEN (newest): 4 passed, 1 failed, 1 skipped" \
        "REPORTED: not everything passes on Linux $UNSEEN (newest)"
    is "118 passed, 0 failed, 3 skipped" "$(last)"
    not_kept '--passed --kernel newest'

    # The other kernel is no better for it.
    echo "bad_two" >"$tmp/fails-stable"
    run "$tmp/repo/scripts/test" --kernel all
    is 1 "$status"
    is "118 passed, 1 failed, 3 skipped" "$(last)"
}

test_one_unseen_kernel_is_lenient_in_ci_alone() {
    a_run "$UNSEEN" "$RECORDED"
    echo "bad_one" >"$tmp/fails-stable"
    CI=true run "$tmp/repo/scripts/test" --vm --kernel stable
    is 0 "$status"
    said "REPORTED: not everything passes on Linux $UNSEEN (stable)"
    is "4 passed, 0 failed, 1 skipped" "$(last)"
    run "$tmp/repo/scripts/test" --vm --kernel stable
    is 1 "$status"
    is "4 passed, 1 failed, 1 skipped" "$(last)"
}

test_a_program_that_dies_is_counted_beside_tests_that_fail() {
    a_run "$RECORDED" "$RECORDED"
    touch "$tmp/dies"
    run "$tmp/repo/scripts/test" --vm
    is 1 "$status"
    said "1 ended without a result"
    is "4 passed, 1 failed, 1 skipped" "$(last)"
    echo "bad_one" >"$tmp/fails-stable"
    run "$tmp/repo/scripts/test" --vm
    is 1 "$status"
    said "bad_one (stable)" "1 ended without a result"
    is "4 passed, 2 failed, 1 skipped" "$(last)"
}

test_where_no_kernel_is_recorded_failures_count() {
    a_run "$UNSEEN" "$UNSEEN"
    echo "bad_one" >"$tmp/fails-newest"
    CI=true run "$tmp/repo/scripts/test" --kernel all
    is 1 "$status"
    not_said REPORTED
    is "118 passed, 1 failed, 3 skipped" "$(last)"
}

test_a_second_run_in_the_same_checkout_is_refused() {
    a_run "$RECORDED" "$RECORDED"
    mkdir -p "$tmp/target/test-logs"
    exec 7>"$tmp/target/test-logs/lock"
    flock 7
    run "$tmp/repo/scripts/test"
    is 1 "$status"
    said "another scripts/test runs"
}

test_a_signal_ends_the_tests_too() {
    a_run "$RECORDED" "$RECORDED"
    mv "$tmp/bin/cargo" "$tmp/bin/cargo.quick"
    # As a test program, which is no direct child, and has a VM.
    fake cargo <<END
[[ " \$* " == *" --exclude "* ]] || exec $tmp/bin/cargo.quick "\$@"
bash -c 'sleep 600 & echo \$! >$tmp/vm; wait' &
echo \$! >$tmp/program
wait
END
    local pid signal
    for signal in TERM HUP; do
        rm -f "$tmp/vm" "$tmp/program"
        begin "$tmp/repo/scripts/test" --quick
        until_true "a test runs" test -s "$tmp/vm" -a -s "$tmp/program"
        kill "-$signal" "$job"
        until_true "scripts/test ends by SIG$signal" gone "$job"
        for pid in "$(<"$tmp/vm")" "$(<"$tmp/program")"; do
            gone "$pid" || fail "$(tr '\0' ' ' </proc/"$pid"/cmdline) goes on after SIG$signal"
        done
    done
    # So the next is free to use the folder.
    mv "$tmp/bin/cargo.quick" "$tmp/bin/cargo"
    run "$tmp/repo/scripts/test" --quick
    is 0 "$status"
}

test_an_unseen_kernel_that_passes_is_to_be_recorded() {
    a_run "$RECORDED" "$UNSEEN"
    run "$tmp/repo/scripts/test" --kernel all
    is 0 "$status"
    said "(newest): 4 passed, 0 failed, 1 skipped [not in tests/kernels.toml: it passes, record it]"
}

test_without_the_newest_kernel_stable_still_counts() {
    a_run "$RECORDED" "$UNSEEN"
    touch "$tmp/no-newest"
    run "$tmp/repo/scripts/test" --kernel all
    is 0 "$status"
    said "no VM with the kernel 'newest'" "REPORTED" "two real VMs (newest): could not run"
    is "114 passed, 0 failed, 2 skipped" "$(last)"
    # Asked for it alone, that is an error.
    run "$tmp/repo/scripts/test" --kernel newest
    is 1 "$status"
    said "no VM with the kernel 'newest'"
}

test_a_kernel_that_is_not_there_is_not_recorded() {
    a_run "$RECORDED" "$UNSEEN"
    rm "$tmp/lab/kernel-newest.env"
    run bash -c '. "$1/scripts/lib.sh"; recorded stable && ! recorded newest' sh "$tmp/repo"
    is 0 "$status"
    # So it does not excuse the failures of an unseen one.
    a_run "$UNSEEN" "$RECORDED"
    rm "$tmp/lab/kernel-newest.env"
    echo "bad_one" >"$tmp/fails-stable"
    CI=true run "$tmp/repo/scripts/test" --vm
    is 1 "$status"
    is "4 passed, 1 failed, 1 skipped" "$(last)"
}

test_without_any_kernel_the_tests_of_vms_have_failed() {
    a_run "$RECORDED" "$RECORDED"
    touch "$tmp/no-stable" "$tmp/no-newest"
    run "$tmp/repo/scripts/test" --kernel all
    is 1 "$status"
    not_said REPORTED
    is "110 passed, 2 failed, 1 skipped" "$(last)"
}

# It is there, but our module does not build for it.
test_a_recorded_kernel_that_cannot_be_used_is_a_failure() {
    a_run "$RECORDED" "$RECORDED"
    stub build-module <<<'[[ " $* " != *" newest "* ]]'
    run "$tmp/repo/scripts/test" --kernel all
    is 1 "$status"
    is "114 passed, 1 failed, 2 skipped" "$(last)"
}

# Its tests count as skipped, or as failed, by themselves.
test_an_earlier_revision_that_is_not_there_stops_no_other_test() {
    a_run "$RECORDED" "$RECORDED"
    stub build-revision <<<'exit 1'
    run "$tmp/repo/scripts/test" --vm
    is 0 "$status"
    said "no earlier revision to test with"
    is "4 passed, 0 failed, 1 skipped" "$(last)"
}

test_a_second_boot_of_the_nested_host_is_counted() {
    a_run "$RECORDED" "$RECORDED"
    run "$tmp/repo/scripts/test" --nested --kernel all
    is 0 "$status"
    said "Run again, 6 times" "the machine ended (stable)" "the machine ended (newest)"
    is "18 passed, 0 failed, 0 skipped" "$(last)"
}

test_a_strict_run_fails_on_an_unseen_kernel_too() {
    a_run "$RECORDED" "$UNSEEN"
    echo "bad_one" >"$tmp/fails-newest"
    CI=true run "$tmp/repo/scripts/test" --vm --strict --kernel all
    is 1 "$status"
    said "Linux $UNSEEN (newest): 4 passed, 1 failed, 1 skipped"
    not_said REPORTED
    is "8 passed, 1 failed, 2 skipped" "$(last)"
}
