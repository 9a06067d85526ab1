# shellcheck shell=bash disable=SC2154,SC2016 # variables of run; text for other shells
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# scripts/nested, with a machine that only says what a real one would.

# a_machine: every boot runs the commands of standard input, in which $boot is its
# number and $logs the folder of the logs.
a_machine() {
    checkout
    mkdir -p "$tmp/lab" "$tmp/target"
    {
        printf 'echo >>%q/boots; boot=$(wc -l <%q/boots) logs=%q/test-logs/nested-udmabuf-stable\n' "$tmp" "$tmp" "$CARGO_TARGET_DIR"
        cat
    } | stub in-lab
    stub lab <<<''
    stub guest-image <<<"echo $tmp/image"
    stub accel <<<'echo tcg'
    echo "ROOT=$tmp/lab/root QEMU_VERSION=0" >"$tmp/lab/lab.env"
    echo "KERNEL_IMAGE=$tmp/vmlinux" >"$tmp/lab/kernel-stable.env"
    touch "$tmp/udmabuf-0"
    chmod +x "$tmp/udmabuf-0"
    fake cargo <<END
[[ \$1 == --version ]] && echo "cargo 1.999.0 (0 2000-01-01)" || echo '{"executable":"$tmp/udmabuf-0"}'
END
}

boots() {
    wc -l <"$tmp/boots"
}

test_a_result_is_shown() {
    a_machine <<'END'
echo "[    1.0] fine" >"$logs/host.console"
echo "test result: ok. 3 passed; 0 failed; 0 ignored" >"$logs/output"
echo 0 >"$logs/status"
END
    run "$tmp/repo/scripts/nested" --kernel stable
    is 0 "$status"
    said "3 passed"
    is 1 "$(boots)"
}

test_a_failure_is_not_tried_again() {
    a_machine <<'END'
echo "[    1.0] fine" >"$logs/host.console"
echo 101 >"$logs/status"
END
    run "$tmp/repo/scripts/nested" --kernel stable
    is 1 "$status"
    said "the test program ended with 101"
    is 1 "$(boots)"
}

test_a_crash_of_the_host_is_not_tried_again() {
    local line
    for line in "Kernel panic - not syncing: Fatal exception" "Oops: 0000 [#1] PREEMPT SMP" \
        "BUG: kernel NULL pointer dereference" "general protection fault, probably for"; do
        rm -f "$tmp/boots"
        a_machine <<<"echo '[   61.0] $line' >\"\$logs/host.console\""
        run "$tmp/repo/scripts/nested" --kernel stable
        is 1 "$status"
        said "the kernel of the machine that acts as the host complained" "$line"
        is 1 "$(boots)"
    done
}

test_a_complaint_of_the_host_is_a_failure_also_with_a_result() {
    a_machine <<'END'
echo "[   61.0] WARNING: CPU: 0 PID: 1 at mm/memory.c:1" >"$logs/host.console"
echo 0 >"$logs/status"
END
    run "$tmp/repo/scripts/nested" --kernel stable
    is 1 "$status"
    said "WARNING: CPU: 0"
    is 1 "$(boots)"
}

test_an_end_without_a_word_is_tried_again_once_and_said() {
    a_machine <<'END'
echo "[    1.0] fine" >"$logs/host.console"
((boot > 1)) || exit 134
echo "test result: ok. 3 passed; 0 failed; 0 ignored" >"$logs/output"
echo 0 >"$logs/status"
END
    run "$tmp/repo/scripts/nested" --kernel stable
    is 0 "$status"
    said "RETRY: the machine ended without a result (QEMU: 134)" "3 passed"
    is 2 "$(boots)"

    a_machine <<<'echo "[    1.0] fine" >"$logs/host.console"; exit 134'
    rm "$tmp/boots"
    run "$tmp/repo/scripts/nested" --kernel stable
    is 1 "$status"
    said "ended without a result (QEMU: 134)"
    is 2 "$(boots)"
}

test_systemd_is_started_for_the_tests_that_need_it() {
    a_machine <<'END'
logs=${logs/udmabuf/systemd}
echo "$*" >"$logs/words"
echo "[    1.0] fine" >"$logs/host.console"
echo 0 >"$logs/status"
END
    touch "$tmp/systemd-0"
    chmod +x "$tmp/systemd-0"
    fake cargo <<END
[[ \$1 == --version ]] && echo "cargo 1.999.0 (0 2000-01-01)" || echo '{"executable":"$tmp/systemd-0"}'
END
    run "$tmp/repo/scripts/nested" --kernel stable --test systemd -- one_name
    is 0 "$status"
    local logs=$CARGO_TARGET_DIR/test-logs/nested-systemd-stable
    grep -qF ' SYSTEMD=1 ' "$logs/words" || fail "init was not told"
    is "$tmp/systemd-0 --test-threads=1 --ignored one_name" "$(grep -F -- --test-threads "$logs/command")"
    bash -n "$logs/command"
}
