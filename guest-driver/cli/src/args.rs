// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bufshare::{BufferId, Rights};
use bufshare_media::fourcc::PixelFormat;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::rotation::{MAX_BUFFERS, MIN_BUFFERS};

/// Share dma-bufs with other virtual machines.
///
/// A dma-buf whose memory is this machine's own is exported under a random id.
/// Another machine imports that id and gets a dma-buf of the same memory. The host's
/// operator decides which machines may share.
#[derive(Debug, Parser)]
#[command(
    name = "bufshare",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    after_long_help = "\
EXIT STATUS
  0  done
  1  failed, or a check found a difference; the reason is on stderr
  2  the command line is wrong

OUTPUT
  With --json each line of stdout is one JSON object with a member \"type\"; only
  `dump --out -` writes the buffer's bytes there. Errors and warnings are JSON
  objects on stderr: {\"error\":…, \"errno\":…, \"status\":…} and {\"warning\":…}. errno is a number or null. status is the host's reason, such
  as \"NOT_FOUND\", or null.

READ-ONLY ACCESS
  A VMM that does not enforce read-only mappings cannot import for reading alone.
  QEMU is one; where `bufshare info` prints ro_enforced, the VMM enforces them. On
  the others, a command without explicit rights uses rw, and warns. `view`, which
  has no option for them, does not warn.

EXAMPLES
  List the machines, and what may be shared with each:
      bufshare peers
  Export 4 MiB to \"display\", filled with a pattern, until end of input (Ctrl-D):
      bufshare alloc --size 4M --fill-seed 1 --to display:rw
  List what others export, and read one of these buffers:
      bufshare list
      bufshare dump 0123456789abcdef0123456789abcdef
  Show the frames of one machine's camera on another machine's screen:
      bufshare capture --to display:rw --hold     # machine \"camera\"
      bufshare view --from camera --hold          # machine \"display\""
)]
pub(crate) struct Cli {
    /// Print one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// The bufshare device
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        default_value = "/dev/bufshare"
    )]
    pub(crate) node: PathBuf,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print this machine's name and the limits of its device
    Info,
    /// List the machines and what may be shared with each
    Peers,
    /// List the buffers: own ones and those that others export to this machine
    List,
    /// Allocate a buffer in few pieces and export it
    #[command(after_help = "\
EXAMPLES
  bufshare alloc --size 1M --name scratch --to display:rw
  bufshare alloc --size 64K --fill deadbeef --to encoder:rw --to display:rw")]
    Alloc(Alloc),
    /// Export a dma-buf that another driver made
    #[command(after_help = "\
EXAMPLES
  bufshare export --heap system --size 256K --to display:rw
  bufshare export --vgem --size 1M --to display:rw
  bufshare export --fd 3 --to display:rw 3<&7     # a dma-buf passed by the caller")]
    Export(Export),
    /// Import a buffer, to see that it works
    #[command(after_help = "\
EXAMPLES
  bufshare import 0123456789abcdef0123456789abcdef --mmap
  bufshare import 0123456789abcdef0123456789abcdef --rights rw --hold")]
    Import(Import),
    /// Read a buffer of another machine: to a file, or its hash
    #[command(after_help = "\
EXAMPLES
  bufshare dump 0123456789abcdef0123456789abcdef
  bufshare dump 0123456789abcdef0123456789abcdef --out frame.raw")]
    Dump(Dump),
    /// Write bytes into a buffer of another machine
    #[command(after_help = "\
EXAMPLE
  bufshare write 0123456789abcdef0123456789abcdef --offset 0x1000 --bytes cafe")]
    Write(Write),
    /// List the buffers, then print events, until a signal or the end of input
    #[command(after_help = "\
EXAMPLES
  bufshare watch
  bufshare --json watch --count 1 --timeout 10")]
    Watch(Watch),
    /// Hand a camera's frames over as they come, without copying them
    #[command(after_help = "\
It offers a stream of that name, whose buffers are exported once. A filled one is
handed to all who view the stream then, and goes back to the camera when the last of
them has given it back; frames that come while nobody views are not counted. The
camera's driver has to fill memory that is allocated here (V4L2_MEMORY_DMABUF).
Frames are shared in the camera's pixel format: nothing converts them.

EXAMPLES
  bufshare capture --to display:rw --frames 100
  bufshare --json capture --device /dev/video0 --size 640x480 --format XRGB8888 \\
      --fps 30 --buffers 4 --frames 0 --to display:rw --verify --hold")]
    Capture(Capture),
    /// Show the frames that a `capture` on another machine hands over
    #[command(after_help = "\
Each buffer is imported once. A frame is shown without copying, and with --verify
compared with the camera's hash before. It is given back when the next one is on the
screen. Where no DRM device shows imported memory, a copy is shown, and the output
says so. A camera that is started again is viewed on.

EXAMPLES
  bufshare view --from camera --frames 100 --hold
  bufshare --json view --from camera --verify --no-display")]
    View(View),
    /// Camera to screen within this machine, without bufshare
    #[command(hide = true)]
    Selftest(Selftest),
}

/// What to export, to whom and for how long.
#[derive(Args, Debug)]
pub(crate) struct Offer {
    /// A name for people
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub(crate) name: String,

    /// Who may import it: a peer's name or number, then the rights, r (read) or rw.
    /// May be repeated. Default rights: r where this machine's VMM enforces it, else
    /// all that the host's operator allows. Without --to: all peers, with the rights that
    /// the operator allows; who can write then is said
    #[arg(long, value_name = "PEER[:r|rw]")]
    pub(crate) to: Vec<Grant>,

    /// Fill it with these bytes, repeated
    #[arg(long, value_name = "HEX", conflicts_with = "fill_seed")]
    pub(crate) fill: Option<Hex>,

    /// Fill it with pseudo-random bytes (SplitMix64, little endian)
    #[arg(long, value_name = "NUMBER")]
    pub(crate) fill_seed: Option<u64>,

    #[command(flatten)]
    pub(crate) until: Until,
}

/// What ends a command that holds a buffer.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Until {
    /// End at a signal only, not at the end of the standard input
    #[arg(long)]
    pub(crate) ignore_stdin: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Alloc {
    /// Bytes; K, M and G may follow
    #[arg(long, value_name = "BYTES")]
    pub(crate) size: Bytes,

    #[command(flatten)]
    pub(crate) offer: Offer,
}

#[derive(Args, Debug)]
#[group(skip)]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) source: Source,

    /// Bytes, for all but --fd; K, M and G may follow
    #[arg(
        long,
        value_name = "BYTES",
        required_unless_present = "fd",
        conflicts_with = "fd"
    )]
    pub(crate) size: Option<Bytes>,

    #[command(flatten)]
    pub(crate) offer: Offer,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// Of this heap in /dev/dma_heap
    #[arg(long, value_name = "NAME")]
    pub(crate) heap: Option<String>,

    /// Of /dev/udmabuf: pages of an anonymous file
    #[arg(long)]
    pub(crate) udmabuf: bool,

    /// Of the vgem card
    #[arg(long)]
    pub(crate) vgem: bool,

    /// This open descriptor
    #[arg(long, value_name = "NUMBER")]
    pub(crate) fd: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The buffer
    pub(crate) id: Id,

    /// Rights to import with, r (read) or rw. Default: r where this machine's VMM
    /// enforces it, else all that were granted
    #[arg(long, value_parser = rights)]
    pub(crate) rights: Option<Rights>,

    /// Map it and read its first byte
    #[arg(long)]
    pub(crate) mmap: bool,

    /// Keep it until the end of the standard input, or a signal
    #[arg(long)]
    pub(crate) hold: bool,

    #[command(flatten)]
    pub(crate) until: Until,
}

/// How to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HashKind {
    /// 256 bits, for people who compare with sha256sum
    Sha256,
    /// 64 bits, fast
    Xxh3,
}

#[derive(Args, Debug)]
pub(crate) struct Dump {
    /// The buffer
    pub(crate) id: Id,

    /// Write the bytes here; - is the standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Which hash to print
    #[arg(long, value_enum, default_value_t = HashKind::Sha256)]
    pub(crate) hash: HashKind,

    /// Rights to import with, r (read) or rw. Default: r where this machine's VMM
    /// enforces it, else all that were granted
    #[arg(long, value_parser = rights)]
    pub(crate) rights: Option<Rights>,
}

#[derive(Args, Debug)]
pub(crate) struct Write {
    /// The buffer
    pub(crate) id: Id,

    /// Where; K, M and G may follow
    #[arg(long, default_value = "0", value_name = "BYTES")]
    pub(crate) offset: Bytes,

    /// What
    #[arg(long, value_name = "HEX")]
    pub(crate) bytes: Hex,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    /// End after so many events
    #[arg(long, value_name = "NUMBER")]
    pub(crate) count: Option<u64>,

    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    #[command(flatten)]
    pub(crate) until: Until,
}

/// How to run a camera.
#[derive(Args, Debug)]
pub(crate) struct CameraArgs {
    /// The camera
    #[arg(long, value_name = "PATH", default_value = "/dev/video0")]
    pub(crate) device: PathBuf,

    /// Pixels. Default: 640x480, or the nearest that the camera has
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub(crate) size: Option<Pixels>,

    /// Pixel format: a V4L2 code, or the DRM name of the same layout. Default: XRGB8888
    /// where the camera has it, as no webcam does; else one that some screens show, as
    /// YUYV; else the camera's present one. Which was taken is said
    #[arg(long)]
    pub(crate) format: Option<PixelFormat>,

    /// Pictures a second; the camera takes the nearest it can. Default: its own
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) fps: Option<u32>,

    /// Buffers in rotation, at least twice as many as machines that may view. Default: that
    /// many, or 4
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(i64::from(MIN_BUFFERS)..=i64::from(MAX_BUFFERS)))]
    pub(crate) buffers: Option<u32>,
}

#[derive(Args, Debug)]
pub(crate) struct Capture {
    #[command(flatten)]
    pub(crate) camera: CameraArgs,

    /// End after so many frames; 0: at a signal
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub(crate) frames: u64,

    /// Who may view them: a peer's name or number, then the rights, r (read) or rw.
    /// May be repeated; then a peer that keeps its share of the buffers is given no more frames
    /// meanwhile, so that the others are. Default rights: as `bufshare alloc --to`
    #[arg(long, value_name = "PEER[:r|rw]", required = true)]
    pub(crate) to: Vec<Grant>,

    /// The stream's name, by which it is viewed
    #[arg(long, value_name = "TEXT", default_value = "camera")]
    pub(crate) name: String,

    /// Say a hash of each frame, and have it answered, by `view --verify`: all of it is read.
    /// A peer that may write (rw) answers
    #[arg(long)]
    pub(crate) verify: bool,

    /// Longest wait for the camera or the viewers. A frame that the camera's driver marks as
    /// broken is none
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// When done, leave the last frame with its viewers until a line or the end of the
    /// standard input, or a signal
    #[arg(long)]
    pub(crate) hold: bool,

    #[command(flatten)]
    pub(crate) until: Until,
}

#[derive(Args, Debug)]
pub(crate) struct View {
    /// Whose frames, by name or number
    #[arg(long, value_name = "PEER")]
    pub(crate) from: String,

    /// The name that its stream has
    #[arg(long, value_name = "TEXT", default_value = "camera")]
    pub(crate) name: String,

    /// End after so many frames; 0: at a signal, or after the camera's last one
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) frames: u64,

    /// DRM device of the screen. Default: the one that shows the frames best
    #[arg(long, value_name = "PATH", conflicts_with = "no_display")]
    pub(crate) card: Option<PathBuf>,

    /// Do not show the frames, only look at them and give them back
    #[arg(long)]
    pub(crate) no_display: bool,

    /// Compare each frame with the hash that `capture --verify` says, and answer it: all of it
    /// is read
    #[arg(long)]
    pub(crate) verify: bool,

    /// Longest wait for the next frame
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,

    /// When done, keep the last frame on the screen until a line or the end of the
    /// standard input, or a signal
    #[arg(long)]
    pub(crate) hold: bool,

    #[command(flatten)]
    pub(crate) until: Until,
}

#[derive(Args, Debug)]
pub(crate) struct Selftest {
    #[command(flatten)]
    pub(crate) camera: CameraArgs,

    /// Frames
    #[arg(long, value_name = "NUMBER", default_value_t = 10)]
    pub(crate) frames: u64,

    /// DRM device of the screen
    #[arg(long, value_name = "PATH")]
    pub(crate) card: Option<PathBuf>,

    /// Keep the last frame on the screen until a line or the end of the standard input
    #[arg(long)]
    pub(crate) hold: bool,
}

/// A buffer's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) BufferId);

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| "an id is 32 hexadecimal digits".to_owned())
    }
}

/// A peer as it was typed, and what it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) peer: String,
    /// None: not typed.
    pub(crate) rights: Option<Rights>,
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (peer, rights) = match text.rsplit_once(':') {
            Some((peer, suffix)) => (peer, Some(rights(suffix)?)),
            None => (text, None),
        };
        if peer.is_empty() {
            return Err("the peer's name is missing".to_owned());
        }
        Ok(Self {
            peer: peer.to_owned(),
            rights,
        })
    }
}

fn rights(text: &str) -> Result<Rights, String> {
    match text {
        "r" => Ok(Rights::READ),
        "rw" => Ok(Rights::RW),
        _ => Err("rights are r or rw".to_owned()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let wrong = || "a number of seconds, such as 30 or 0.5".to_owned();
    let seconds: f64 = text.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a number of bytes, such as 4096, 0x1000, 64K or 1M".to_owned();
        let (digits, shift) = match text.char_indices().last() {
            Some((at, 'k' | 'K')) => (text.get(..at), 10),
            Some((at, 'm' | 'M')) => (text.get(..at), 20),
            Some((at, 'g' | 'G')) => (text.get(..at), 30),
            _ => (Some(text), 0),
        };
        let digits = digits.unwrap_or_default();
        let number = match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => digits.parse(),
        };
        number
            .ok()
            .and_then(|number| number.checked_mul(1u64.wrapping_shl(shift)))
            .map(Self)
            .ok_or_else(wrong)
    }
}

/// A picture's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl FromStr for Pixels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (width, height) = text.split_once(['x', 'X'])?;
            let (width, height) = (width.parse().ok()?, height.parse().ok()?);
            let fine = 1..=16384;
            (fine.contains(&width) && fine.contains(&height)).then_some(Self { width, height })
        };
        parse().ok_or_else(|| "a size in pixels, such as 640x480".to_owned())
    }
}

/// Bytes in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) Vec<u8>);

impl FromStr for Hex {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let digits = text.strip_prefix("0x").unwrap_or(text).as_bytes();
            let (pairs, rest) = digits.as_chunks::<2>();
            if pairs.is_empty() || !rest.is_empty() {
                return None;
            }
            pairs
                .iter()
                .map(|[high, low]| {
                    let high = char::from(*high).to_digit(16)?;
                    let low = char::from(*low).to_digit(16)?;
                    u8::try_from(high.checked_mul(16)?.checked_add(low)?).ok()
                })
                .collect()
        };
        parse()
            .map(Self)
            .ok_or_else(|| "bytes in hexadecimal, such as a5 or deadbeef".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_units() {
        for (text, value) in [
            ("4096", 4096),
            ("0x1000", 4096),
            ("64K", 65536),
            ("1M", 1 << 20),
            ("2g", 2 << 30),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(value)), "{text}");
        }
        for text in ["", "K", "-1", "1T", "99999999999G", "1.5M", "é"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_grant_is_a_peer_and_maybe_rights() {
        let grant = |peer: &str, rights| {
            Ok(Grant {
                peer: peer.to_owned(),
                rights,
            })
        };
        assert_eq!("display".parse(), grant("display", None));
        assert_eq!("display:r".parse(), grant("display", Some(Rights::READ)));
        assert_eq!("2:rw".parse(), grant("2", Some(Rights::RW)));
        for text in ["", ":rw", "display:", "display:w", "display:x"] {
            assert!(text.parse::<Grant>().is_err(), "{text}");
        }
    }

    #[test]
    fn pixels_and_hex() {
        assert_eq!(
            "640x480".parse(),
            Ok(Pixels {
                width: 640,
                height: 480
            })
        );
        for text in ["", "640", "0x480", "640x", "640x99999"] {
            assert!(text.parse::<Pixels>().is_err(), "{text}");
        }
        assert_eq!("dEadbe0f".parse(), Ok(Hex(vec![0xde, 0xad, 0xbe, 0x0f])));
        for text in ["", "a", "xy", "abc", "0x"] {
            assert!(text.parse::<Hex>().is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "nan", "inf", "1e99"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_export_has_one_source() {
        assert!(parse("bufshare export --heap system --size 4K").is_ok());
        assert!(parse("bufshare export --udmabuf --size 4K --to 2:rw --to x").is_ok());
        assert!(parse("bufshare export --fd 3").is_ok());
        assert!(parse("bufshare export --heap system").is_err());
        assert!(parse("bufshare export --size 4K").is_err());
        assert!(parse("bufshare export --fd 3 --size 4K").is_err());
        assert!(parse("bufshare export --vgem --udmabuf --size 4K").is_err());
    }

    #[test]
    fn global_options_stand_anywhere() {
        assert!(parse("bufshare list --json").unwrap().json);
        assert!(parse("bufshare --json list").unwrap().json);
    }

    #[test]
    fn options_are_named_as_in_the_help() {
        for line in [
            "bufshare capture --device /dev/video0 --size 640x480 --format XRGB8888 --buffers 4 --frames 100 --to display:rw --to 3 --name front --verify --hold",
            "bufshare view --from camera --name front --frames 100 --card /dev/dri/card0 --hold",
            "bufshare view --from camera --verify --no-display --json",
            "bufshare import 0123456789abcdef0123456789abcdef --rights rw --hold --mmap",
            "bufshare dump 0123456789abcdef0123456789abcdef --out frame.raw",
            "bufshare write 0123456789abcdef0123456789abcdef --offset 0x1000 --bytes cafe",
            "bufshare watch --count 1 --timeout 10",
        ] {
            parse(line).unwrap();
        }
        assert!(parse("bufshare capture").is_err());
        assert!(parse("bufshare dump 0123").is_err());
        assert!(parse("bufshare view --from a --card /dev/dri/card0 --no-display").is_err());
    }
}
