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

# What fails may be what ends the machine.
test_a_failure_before_such_an_end_is_not_tried_again() {
    local line
    for line in "test a ... FAILED" "thread 'main' panicked at tests/tests/udmabuf.rs:1:1:"; do
        rm -f "$tmp/boots"
        a_machine <<END
echo "[    1.0] fine" >"\$logs/host.console"
echo "$line" >"\$logs/output"
((boot > 1)) || exit 134
echo "test result: ok. 3 passed; 0 failed; 0 ignored" >"\$logs/output"
echo 0 >"\$logs/status"
END
        run "$tmp/repo/scripts/nested" --kernel stable
        is 1 "$status"
        said "$line" "a test failed, and then the machine ended without a result (QEMU: 134)"
        not_said "RETRY"
        is 1 "$(boots)"
    done
}

# As with --accel kvm where there is none.
test_a_qemu_that_does_not_start_is_said() {
    a_machine <<<'echo "qemu: no accelerator"; exit 1'
    run "$tmp/repo/scripts/nested" --kernel stable
    is 1 "$status"
    said "qemu: no accelerator" "error: the machine ended without a result (QEMU: 1)" "Logs are in"
    not_said "No such file"
}

test_a_machine_that_has_to_be_killed_at_its_limit_is_late() {
    a_machine <<'END'
trap '' TERM
echo "[    1.0] fine" >"$logs/host.console"
end=$((SECONDS + 2))
while ((SECONDS < end)); do sleep 0.1; done
kill -KILL $$
END
    run "$tmp/repo/scripts/nested" --kernel stable --limit 1
    is 1 "$status"
    said "not done after 1 s"
    not_said "RETRY"
    is 1 "$(boots)"
}

test_guests_without_kvm_in_an_emulated_machine_are_a_failure() {
    a_machine <<'END'
echo "[    1.0] fine" >"$logs/host.console"
echo 0 >"$logs/status"
END
    # What runs in there, without its change of this machine; an emulated one is first tcg's.
    in_there() {
        local command=$CARGO_TARGET_DIR/test-logs/nested-udmabuf-stable/command
        stub accel <<<"echo $1"
        run "$tmp/repo/scripts/nested" --kernel stable
        is 0 "$status"
        stub accel <<<"echo $2"
        printf '#!/bin/sh\necho "the tests run"\n' >"$tmp/udmabuf-0"
        grep -v '^modprobe ' "$command" >"$tmp/command"
        run bash "$tmp/command"
    }
    in_there tcg tcg
    is 1 "$status"
    said "KVM does not work"
    not_said "the tests run"
    in_there tcg kvm
    is 0 "$status"
    said "the tests run"
    # Not every host with KVM lets its guests have it, too.
    in_there kvm tcg
    is 0 "$status"
    said "the tests run"
}

test_an_error_of_its_init_is_said_and_not_tried_again() {
    a_machine <<'END'
printf '[    1.0] fine\r\n[    1.5] nested: error: cannot show /usr\r\n[    1.6] reboot: Power down\r\n' >"$logs/host.console"
END
    run "$tmp/repo/scripts/nested" --kernel stable
    is 1 "$status"
    said "the machine that acts as the host ended: cannot show /usr" "Logs are in"
    not_said "RETRY" "without a result"
    is 1 "$(boots)"
}

# an_init: a copy of that machine's init, $tmp/init, whose root is $tmp/machine and whose
# commands write down that they were called, in $tmp/calls, and succeed.
an_init() {
    local name
    mkdir -p "$tmp/machine/bin" "$tmp/machine/modules" "$tmp/machine/mnt"
    : >"$tmp/machine/modules/modules.order"
    sed -E "s#(^|[ =\">])/(bin|modules|mnt|logs|dev|proc|sys|usr)\\b#\1$tmp/machine/\2#g" \
        "$REPO/tests/guest/nested-init.sh" >"$tmp/init"
    for name in busybox mount mkdir cp ln insmod sed tr cut sleep chroot sync poweroff; do
        printf '#!%s\necho "%s $*" >>%q\n' "$BASH" "$name" "$tmp/calls" >"$tmp/machine/bin/$name"
        chmod +x "$tmp/machine/bin/$name"
    done
}

test_init_refuses_to_run_outside_of_its_machine() {
    an_init
    LAB=/a SCRIPTS=/b TARGET=/c LOGS=/d run "$BASH" "$tmp/init"
    is 1 "$status"
    said "the first process of a VM of its own" "scripts/nested"
    [[ ! -e $tmp/calls ]] || fail "it called $(<"$tmp/calls")"
}

# first_process COMMAND...: as process 1.
first_process() {
    unshare --user --map-root-user --pid --fork --kill-child "$@"
}

test_init_refuses_to_run_in_a_container() {
    may_mount
    an_init
    rm "$tmp/machine/modules/modules.order"
    LAB=/a SCRIPTS=/b TARGET=/c LOGS=/d run first_process "$BASH" "$tmp/init"
    is 1 "$status"
    said "the first process of a VM of its own"
    [[ ! -e $tmp/calls ]] || fail "it called $(<"$tmp/calls")"
}

test_init_ends_its_machine_with_the_reason() {
    may_mount
    an_init
    LAB=/a SCRIPTS=/b TARGET=/c LOGS='' run first_process "$BASH" "$tmp/init"
    is 1 "$status"
    said "nested: error: LAB, SCRIPTS, TARGET and LOGS have to stand"
    is "poweroff -f" "$(tail -n 1 "$tmp/calls")"
    ! grep -q '^cp ' "$tmp/calls" || fail "it copied"

    printf '#!%s\n[[ " $* " != *" nested "* ]]\n' "$BASH" >"$tmp/machine/bin/mount"
    LAB=/a SCRIPTS=/b TARGET=/c LOGS=/d run first_process "$BASH" "$tmp/init"
    is 1 "$status"
    said "nested: error: cannot mount the root"
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
    grep -qF ' SYSTEMD=1 ' "$logs/words" || fail "init was not given SYSTEMD=1"
    is "$tmp/systemd-0 --test-threads=1 --ignored one_name" "$(grep -F -- --test-threads "$logs/command")"
    bash -n "$logs/command"
}
