// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line. Its help text is the manual.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Parser;

use super::config::{AllowSpec, LogLevel, PeerSpec, RevokeWaitSpec, Size};

/// What stands after the options in `--help`.
const EXAMPLES: &str = "\
Peers:
  Each virtual machine is a peer. Its name comes from here, never from the
  guest. --peer takes these keys, separated by commas:
    name=NAME           1 to 31 bytes, unique
    socket=PATH         listening socket to make, for the VMM to connect to; the
                        owner and the group of this process may
    fd=N                or one that is open already, as handed over by systemd
    ram-fd=allow|deny   whether the VMMs of its importers may be given the file
                        descriptor of this VM's whole RAM (not their guests).
                        Without it, sharing needs /dev/udmabuf on this host, and
                        a buffer can have 64 MiB at most.
                        Default: deny
    unsealed-ram=allow|deny
                        whether this VM's RAM may be a file of which its VMM can
                        take pages away: on tmpfs (memory-backend-file), a memfd
                        with seal=off, or any on hugetlbfs. A VMM that does so ends
                        this program, with the devices of all VMs, and the VMMs of
                        its importers.
                        Default: deny
    enforces-ro=yes|no  whether its VMM maps read-only what was granted
                        read-only. QEMU 11.1 does not, crosvm does. Default: no
  --socket-path and --fd alone serve one more peer, named vm0.

Policy:
  Nothing is shared unless --allow EXPORTER:IMPORTER:RIGHTS says so; RIGHTS is
  r or rw. The guest that exports decides further, within this.

Configuration file:
  TOML with the same names as the options; unknown keys are errors. Options on
  the command line win; --peer and --allow add to those of the file.
    shm-size = \"256M\"
    revoke-wait = 5
    control = \"/run/bufshare/control\"
    log-level = \"info\"
    allow = [\"camera:compositor:rw\"]
    [[peer]]
    name = \"camera\"
    socket = \"/run/bufshare/camera\"
    ram-fd = \"allow\"
    [[peer]]
    name = \"compositor\"
    socket = \"/run/bufshare/compositor\"
    unsealed-ram = \"deny\"
    enforces-ro = false
    [limits]                  # of each VM; these are the defaults
    max-windows = 48          # mappings that its VMM holds, as --max-windows
    max-buffers = 1024        # buffers exported at once, up to 65536
    max-attachments = 1024    # attachments held at once, up to 65536
    max-extents = 1024        # pieces of one buffer, up to 1024
    max-blob = 4096           # bytes of one buffer's own metadata, up to 4096
    max-requests = 1024       # waiting requests (more than max-windows), up to 32768
    max-events = 512          # waiting events about one other VM, up to 65536
    release-ms = 1000         # for a driver to release a revoked buffer, up to 600000

Front end (QEMU 11.1 and newer; memory that is no sealed memfd is left out, and a
VM whose RAM is left out is refused):
  -object memory-backend-memfd,id=m,size=1G,share=on -machine q35,memory-backend=m
  -chardev socket,id=c,path=/run/bufshare/camera
  -device vhost-user-test-device-pci,virtio-id=37,num_vqs=2,vq_size=64,config_size=256,chardev=c

Signals:
  SIGTERM, SIGINT, SIGHUP and SIGQUIT end the program (SIGHUP not under nohup).
  From then on no front end can connect and no guest can export; every buffer is
  revoked. When it is proved that no VMM maps memory of another VM, the program
  ends with status 0. Importers that run get the time of --revoke-wait and 5
  seconds more, those whose device is stopped the time of --revoke-wait (60
  seconds if unlimited); nothing is forced upon them. Whatever is mapped then
  stays mapped, so the status is 3, and standard error has one line for each
  importer: which process, how much, of whom. End those VMs before an exporter
  they name is reset or reboots. (QEMU 11.1.3 aborts by itself when its back end
  leaves while the VM is paused.) A second signal ends at once, with the same
  lines.
  After the end the VMs have no device until they are powered off and on: QEMU's
  generic device cannot connect again.
  After SIGKILL, or a crash, nothing was revoked and no line names anybody:
  end every VM that imports before an exporter is reset or reboots.

Memory of the host:
  Pages of a VM's RAM that nobody has touched yet are allocated when this program
  reads or writes there, and charged to its cgroup: up to all of the VM's RAM by its
  guest, and without a limit by its VMM. Preallocated RAM (prealloc=on) avoids the
  first. With vm.overcommit_memory=2 it has to be preallocated: at the limit of the
  host a missing page ends this program.

Exit status:
  0  ended by a signal, and no VMM maps memory of another VM; or
     --print-capabilities, --help, --version
  1  something did not work; standard error says what
  2  wrong usage: options or configuration
  3  ended by a signal, but VMMs still map memory of other VMs; standard error
     says which
  4  ended by a bug; VMMs may still map memory of other VMs, as after SIGKILL

Examples:
  vhost-device-bufshare \\
    --peer name=camera,socket=/run/bufshare/camera,ram-fd=allow \\
    --peer name=compositor,socket=/run/bufshare/compositor \\
    --allow camera:compositor:rw --control /run/bufshare/control
  socat - UNIX-CONNECT:/run/bufshare/control | jq .broker";

/// Share buffers between virtual machines: the vhost-user back end of the
/// bufshare virtio device.
///
/// A guest exports a dma-buf of its own RAM; another guest imports it, and sees
/// the same memory, without a copy. This program serves the devices of all
/// virtual machines that take part, and decides who gets what. It runs in the
/// foreground until a signal ends it.
#[derive(Debug, Default, Parser)]
#[command(name = "vhost-device-bufshare", version, after_long_help = EXAMPLES, after_help = "See --help for peers, policy, files and examples.")]
pub struct Args {
    /// A virtual machine: name=NAME,socket=PATH|fd=N and, separated by commas too,
    /// ram-fd=allow|deny, unsealed-ram=allow|deny, enforces-ro=yes|no. Repeatable.
    #[arg(long = "peer", value_name = "SPEC")]
    pub peers: Vec<PeerSpec>,

    /// Serve one peer, named vm0, on a socket made at PATH.
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    pub socket_path: Option<PathBuf>,

    /// Serve one peer, named vm0, on the socket that is open as FDNUM. One that
    /// listens serves any number of front ends, one after the other; one that is
    /// connected serves that front end. When no peer can have another front end,
    /// the program ends.
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Let IMPORTER import what EXPORTER exports: EXPORTER:IMPORTER:r or :rw.
    /// Repeatable. What is not allowed is forbidden.
    #[arg(long = "allow", value_name = "RULE")]
    pub allow: Vec<AllowSpec>,

    /// Read a configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Size of each VM's shared-memory region, a power of two; suffixes K, M, G.
    /// [default: 256M]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<Size>,

    /// Mappings that each VMM may hold at once, 1 to 448. Each makes every later
    /// one slower, and is one more memory region for every other vhost device of
    /// that VM: those of the host's kernel take 64, the VM's own RAM among them.
    /// For VMs that have none such, 256 is a good number. QEMU 11.1 aborts above
    /// 512, its RAM counted too. [default: 48]
    #[arg(long, value_name = "N")]
    pub max_windows: Option<u32>,

    /// How long the reset, reboot or pause of a VM is held up for importers that
    /// cannot release its memory, because their own VM is paused or their guest
    /// has stopped the device: seconds, or unlimited. Then their VMM is asked to
    /// unmap all the same; QEMU 11.1 dies of that. With `unlimited` a paused VM
    /// loses nothing, but a hostile guest can hold up the resets of VMs that it
    /// imports from, and two VMs that import from each other cannot be paused at
    /// once. An importer whose session has ended, and whose VMM holds the memory
    /// all the same, is waited for without a limit; the log and the control socket
    /// (holds) name its process: end it. The end of the program waits as long for
    /// such importers, but not for ever, and forces none. [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub revoke_wait: Option<RevokeWaitSpec>,

    /// Make a socket at PATH that answers each connection with one JSON
    /// document of everything that is going on.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// How much to log on standard error. [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Print what this program can do as JSON, and exit. All other options are
    /// ignored.
    #[arg(long)]
    pub print_capabilities: bool,
}
