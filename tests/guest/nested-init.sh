#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# /init of the machine that scripts/nested boots to be the host of two VMs, or of the
# daemon alone. LAB, SCRIPTS, TARGET and LOGS are folders of the real host, from the
# kernel's command line. They are shown at the same paths, with the lab's root around
# them, and LOGS/command is run there. LOGS/status gets its exit status. If SYSTEMD is
# set, this process becomes systemd meanwhile.

# Anywhere else it would mount over, copy and power off what is not its own.
if [ $$ != 1 ] || [ ! -f /modules/modules.order ]; then
    echo "nested-init.sh: this is the first process of a VM of its own: start it by scripts/nested" >&2
    exit 1
fi

export PATH=/bin
/bin/busybox --install -s /bin
view=/mnt

# fail WHAT: end the machine. scripts/nested finds that line on the console and says it.
# The kernel's log is on the console at once; what a program writes there may be lost.
fail() {
    if [ -c /dev/kmsg ]; then
        echo "<3>nested: error: $*" >/dev/kmsg
    else
        echo "nested: error: $*"
    fi
    poweroff -f
    exit 1
}

# share TAG FOLDER OPTIONS: a folder of the real host.
share() {
    # there already, if it is part of one above it
    mkdir -p "$view$2"
    mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$view$2" ||
        fail "cannot mount $2"
}

mount -t proc proc /proc || fail "cannot mount /proc"
mount -t sysfs sysfs /sys || fail "cannot mount /sys"
mount -t devtmpfs devtmpfs /dev || fail "cannot mount /dev"
# Without one of them a folder would be the whole machine.
[ -n "$LAB" ] && [ -n "$SCRIPTS" ] && [ -n "$TARGET" ] && [ -n "$LOGS" ] ||
    fail "LAB, SCRIPTS, TARGET and LOGS have to stand on the kernel's command line"
for name in 9pnet_virtio 9p; do
    sed -n "s/^$name://p" /modules/modules.order | tr ' ' '\n' | while read -r file; do
        # fails if another one needed it, too
        [ -z "$file" ] || insmod "/modules/$file" 2>/dev/null
    done
done

mount -t tmpfs -o mode=755 nested "$view" || fail "cannot mount the root"
for dir in tmp run var; do
    mkdir "$view/$dir"
    mount -t tmpfs "$dir" "$view/$dir" || fail "cannot mount /$dir"
done
for dir in proc sys dev; do
    mkdir "$view/$dir"
    mount --bind "/$dir" "$view/$dir" || fail "cannot show /$dir"
done
share lab "$LAB" ro,cache=loose
mkdir "$view/usr" "$view/etc"
mount --bind "$view$LAB/root/usr" "$view/usr" || fail "cannot show /usr"
if [ -n "$SYSTEMD" ]; then
    # Where a service is installed can be written.
    cp -a "$view$LAB/root/etc/." "$view/etc" || fail "cannot copy /etc"
    mount -t tmpfs libexec "$view/usr/libexec" || fail "cannot mount /usr/libexec"
    # Those make units of disks and the like, at every reload, and find none here.
    mkdir -p "$view/etc/systemd/system-generators"
    for file in "$view/usr/lib/systemd/system-generators"/*; do
        ln -s /dev/null "$view/etc/systemd/system-generators/${file##*/}"
    done
    # Or it would be the first boot, with its questions.
    echo 6275667368617265206f662074657374 >"$view/etc/machine-id"
else
    mount --bind "$view$LAB/root/etc" "$view/etc" || fail "cannot show /etc"
fi
for dir in bin sbin lib lib64; do
    ln -s "usr/$dir" "$view/$dir"
done
share target "$TARGET" ro,cache=loose
share scripts "$SCRIPTS" ro,cache=loose
# Not seen in there: a 9p file that one process reads while another one writes it can
# fail with ENODATA (Linux 7.3), and the tests read consoles of running VMs.
mkdir /logs
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,rw,cache=none logs /logs ||
    fail "cannot mount the folder of the logs"
mount -t tmpfs logs "$view$LOGS" || fail "cannot mount $LOGS"
cp /logs/command "$view$LOGS" || fail "cannot copy the command"

work() {
    # Now and then too, so that a machine that dies leaves something.
    while sleep 20; do cp -rfu "$view$LOGS/." /logs; done &
    copier=$!
    echo "nested: up after $(cut -d' ' -f1 /proc/uptime) s"
    chroot "$view" /bin/bash "$LOGS/command" >/logs/output 2>&1 </dev/null
    status=$?
    kill "$copier"
    wait "$copier"
    # Links that are there already are made anew.
    cp -rf "$view$LOGS/." /logs || fail "cannot copy the logs"
    echo "$status" >/logs/status
    echo "nested: done after $(cut -d' ' -f1 /proc/uptime) s"
    sync
    poweroff -f
}

if [ -n "$SYSTEMD" ]; then
    # Groups such as kvm, as the package of udev makes them when it is installed.
    chroot "$view" /usr/bin/systemd-sysusers || fail "cannot make the system's groups"
    work &
    # sysinit.target and what it needs, as any service has before it.
    exec chroot "$view" /usr/lib/systemd/systemd --unit=basic.target --show-status=0
fi
work
