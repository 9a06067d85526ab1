// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Passes the messages between a front end's socket and the vhost-user crate,
//! unchanged and in order, and sees in passing what the crate does not tell:
//! which protocol features were negotiated, and the socket of the back-end
//! channel.
//!
//! It knows the frame of a message (vhost-user specification, "Message
//! Specification") and judges nothing: what is wrong is the crate's to refuse.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserProtocolFeatures,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message's header: request, flags and size, each 32 bits.
const HEADER: usize = 12;

/// What is seen in passing, before the crate is.
pub trait Watch {
    /// The front end chose its protocol features.
    fn negotiated(&self, features: VhostUserProtocolFeatures);
    /// The front end gave a back-end channel; the socket is a duplicate.
    fn channel(&self, socket: UnixStream);
}

/// Ends a relay from any thread.
#[derive(Debug)]
pub struct Hangup {
    front: UnixStream,
    back: UnixStream,
}

impl Hangup {
    /// Closes both sides. The second call does nothing.
    pub fn hang_up(&self) {
        let _ = self.front.shutdown(Shutdown::Both);
        let _ = self.back.shutdown(Shutdown::Both);
    }
}

/// One front end's connection on its way to the crate.
#[derive(Debug)]
pub struct Relay(Hangup);

impl Relay {
    /// A relay for a connected front end, and the listener from which the crate
    /// takes the other end.
    ///
    /// The crate only takes connections of a listening socket. This one is in
    /// a folder that no other user can enter, and gone when this returns: the
    /// connection waits in its backlog.
    ///
    /// # Errors
    /// As those of the system.
    pub fn new(front: UnixStream) -> io::Result<(Self, Listener)> {
        let dir = tempfile::Builder::new().prefix("bufshare-").tempdir()?;
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path)?;
        let back = UnixStream::connect(&path)?;
        Ok((Self(Hangup { front, back }), Listener::from(listener)))
    }

    /// What ends it.
    ///
    /// # Errors
    /// As `dup`.
    pub fn hangup(&self) -> io::Result<Hangup> {
        Ok(Hangup {
            front: self.0.front.try_clone()?,
            back: self.0.back.try_clone()?,
        })
    }

    /// Passes messages until one of the two hangs up, and then hangs up on the
    /// other. Blocks.
    ///
    /// # Errors
    /// The socket's, other than a hang-up.
    pub fn run(&self, watch: &dyn Watch) -> io::Result<()> {
        let Hangup { front, back } = &self.0;
        let result = loop {
            let passed = wait(front, back).and_then(|side| match side {
                Side::Front => pass(front, back, |message| message.tell(watch)),
                Side::Back => pass(back, front, |_| {}),
            });
            match passed {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.0.hang_up();
        match result {
            Err(error) if is_hang_up(&error) => Ok(()),
            other => other,
        }
    }
}

fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::UnexpectedEof
    )
}

enum Side {
    Front,
    Back,
}

/// The side that has something to read, the crate's answers first.
fn wait(front: &UnixStream, back: &UnixStream) -> io::Result<Side> {
    let entry = |socket: &UnixStream| libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        let mut fds = [entry(back), entry(front)];
        // SAFETY: the array has the given length and outlives the call.
        let rc = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
        if rc < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        let [back, front] = fds;
        if back.revents != 0 {
            return Ok(Side::Back);
        }
        if front.revents != 0 {
            return Ok(Side::Front);
        }
    }
}

/// One message with its descriptors.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Its size is more than the crate takes, and was not read.
    oversized: bool,
}

impl Message {
    fn u32_at(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// The first 64 bits of the payload.
    fn value(&self) -> Option<u64> {
        let bytes = self.bytes.get(HEADER..HEADER.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn tell(&self, watch: &dyn Watch) {
        let code = self.u32_at(0).unwrap_or_default();
        if code == u32::from(FrontendReq::SET_PROTOCOL_FEATURES) {
            if let Some(bits) = self.value() {
                watch.negotiated(VhostUserProtocolFeatures::from_bits_retain(bits));
            }
        } else if code == u32::from(FrontendReq::SET_BACKEND_REQ_FD)
            && let Some(Ok(socket)) = self.fds.first().map(OwnedFd::try_clone)
        {
            watch.channel(UnixStream::from(socket));
        }
    }
}

/// Passes one message; `false` at the end.
fn pass(from: &UnixStream, to: &UnixStream, look: impl FnOnce(&Message)) -> io::Result<bool> {
    let Some(message) = receive(from)? else {
        return Ok(false);
    };
    look(&message);
    send(to, &message)?;
    Ok(!message.oversized)
}

/// The next message; none at the end.
fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut message = Message {
        bytes: vec![0; HEADER],
        fds: Vec::new(),
        oversized: false,
    };
    let mut got = 0;
    while let Some(rest) = message.bytes.get_mut(got..).filter(|rest| !rest.is_empty()) {
        let (n, fds) = receive_some(socket, rest)?;
        message.fds.extend(fds);
        if message.fds.len() > MAX_ATTACHED_FD_ENTRIES {
            return Err(io::Error::other("too many descriptors with one message"));
        }
        match (n, got) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => got = got.saturating_add(n),
        }
        if got == HEADER {
            let size = message.u32_at(8).unwrap_or_default();
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            message.oversized = size > MAX_MSG_SIZE;
            if !message.oversized {
                message.bytes.resize(HEADER.saturating_add(size), 0);
            }
        }
    }
    Ok(Some(message))
}

fn receive_some(socket: &UnixStream, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut fds: [RawFd; MAX_ATTACHED_FD_ENTRIES] = [-1; MAX_ATTACHED_FD_ENTRIES];
    let mut iovecs = [libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    }];
    loop {
        // SAFETY: the one entry is a slice of bytes borrowed for the call.
        match unsafe { socket.recv_with_fds(&mut iovecs, &mut fds) } {
            Ok((n, count)) => {
                let fds = fds
                    .iter()
                    .take(count)
                    // SAFETY: just received, and nobody else knows the number.
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) })
                    .collect();
                return Ok((n, fds));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
        }
    }
}

fn send(socket: &UnixStream, message: &Message) -> io::Result<()> {
    let fds: Vec<RawFd> = message.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut bytes = message.bytes.as_slice();
    let mut fds = fds.as_slice();
    while !bytes.is_empty() {
        match socket.send_with_fds(&[bytes], fds) {
            Ok(n) => {
                bytes = bytes.get(n..).unwrap_or_default();
                fds = &[];
            }
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(io::Error::from_raw_os_error(error.errno())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::Mutex;

    const ADD_MEM_REG: u32 = 37;

    #[derive(Default)]
    struct Seen {
        features: Mutex<Vec<u64>>,
        channels: Mutex<Vec<UnixStream>>,
    }

    impl Watch for Seen {
        fn negotiated(&self, features: VhostUserProtocolFeatures) {
            self.features.lock().unwrap().push(features.bits());
        }

        fn channel(&self, socket: UnixStream) {
            self.channels.lock().unwrap().push(socket);
        }
    }

    fn header(code: u32, size: u32) -> Vec<u8> {
        [code, 1, size]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    fn message(code: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(code, u32::try_from(payload.len()).unwrap());
        bytes.extend(payload);
        bytes
    }

    /// What `test` does as the front end and as the crate, and what was seen.
    fn relayed(test: impl FnOnce(UnixStream, UnixStream)) -> (Seen, io::Result<()>) {
        let (front, far) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(front).unwrap();
        let back = listener.accept().unwrap().unwrap();
        let seen = Seen::default();
        let result = std::thread::scope(|scope| {
            let relay = scope.spawn(|| relay.run(&seen));
            test(far, back);
            relay.join().unwrap()
        });
        (seen, result)
    }

    fn expect(socket: &mut UnixStream, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        socket.read_exact(&mut got).unwrap();
        assert_eq!(got, bytes);
    }

    #[test]
    fn messages_pass_unchanged_in_both_directions() {
        let big = vec![7; MAX_MSG_SIZE];
        let (seen, result) = relayed(|mut front, mut back| {
            front.write_all(&message(1, &[])).unwrap();
            front.write_all(&message(2, &big)).unwrap();
            expect(&mut back, &message(1, &[]));
            expect(&mut back, &message(2, &big));
            back.write_all(&message(3, &[1, 2, 3])).unwrap();
            expect(&mut front, &message(3, &[1, 2, 3]));
        });

        result.unwrap();
        assert!(seen.features.lock().unwrap().is_empty());
    }

    #[test]
    fn message_that_comes_in_pieces_passes_whole() {
        let (_, result) = relayed(|mut front, mut back| {
            let bytes = message(9, &[5; 100]);
            for piece in bytes.chunks(7) {
                front.write_all(piece).unwrap();
            }
            expect(&mut back, &bytes);
        });

        result.unwrap();
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (_, result) = relayed(|front, back| {
            let files: Vec<UnixStream> = (0..2).map(|_| UnixStream::pair().unwrap().0).collect();
            let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
            let bytes = message(ADD_MEM_REG, &[1; 40]);
            front.send_with_fds(&[bytes.as_slice()], &fds).unwrap();
            front.send_with_fds(&[bytes.as_slice()], &[]).unwrap();

            let first = receive(&back).unwrap().unwrap();
            let second = receive(&back).unwrap().unwrap();

            assert_eq!((first.bytes, first.fds.len()), (bytes.clone(), 2));
            assert_eq!((second.bytes, second.fds.len()), (bytes, 0));
        });

        result.unwrap();
    }

    #[test]
    fn features_and_the_channel_are_seen() {
        let (seen, result) = relayed(|mut front, back| {
            let code = u32::from(FrontendReq::SET_PROTOCOL_FEATURES);
            front
                .write_all(&message(code, &0x40_8021_u64.to_ne_bytes()))
                .unwrap();
            let (channel, _kept) = UnixStream::pair().unwrap();
            let code = u32::from(FrontendReq::SET_BACKEND_REQ_FD);
            front
                .send_with_fds(&[message(code, &[]).as_slice()], &[channel.as_raw_fd()])
                .unwrap();
            receive(&back).unwrap().unwrap();
            assert_eq!(receive(&back).unwrap().unwrap().fds.len(), 1);
        });

        result.unwrap();
        assert_eq!(*seen.features.lock().unwrap(), [0x40_8021]);
        assert_eq!(seen.channels.lock().unwrap().len(), 1);
    }

    #[test]
    fn features_without_a_value_are_not_seen() {
        let (seen, _) = relayed(|mut front, mut back| {
            let code = u32::from(FrontendReq::SET_PROTOCOL_FEATURES);
            front.write_all(&message(code, &[1, 2, 3])).unwrap();
            expect(&mut back, &message(code, &[1, 2, 3]));
        });

        assert!(seen.features.lock().unwrap().is_empty());
    }

    #[test]
    fn message_larger_than_any_reaches_the_crate_as_its_header_and_is_the_last() {
        let size = u32::try_from(MAX_MSG_SIZE).unwrap() + 1;
        let (_, result) = relayed(|mut front, mut back| {
            front.write_all(&header(5, size)).unwrap();
            expect(&mut back, &header(5, size));
            assert_eq!(back.read(&mut [0; 1]).unwrap(), 0);
            assert_eq!(front.read(&mut [0; 1]).unwrap(), 0);
        });

        result.unwrap();
    }

    #[test]
    fn hang_up_of_one_is_a_hang_up_for_the_other() {
        let (_, result) = relayed(|mut front, back| {
            drop(back);
            assert_eq!(front.read(&mut [0; 1]).unwrap(), 0);
        });
        result.unwrap();

        let (_, result) = relayed(|mut front, mut back| {
            front.write_all(&[1, 2, 3]).unwrap();
            drop(front);
            assert_eq!(back.read(&mut [0; 1]).unwrap(), 0);
        });
        result.unwrap();
    }

    #[test]
    fn too_many_descriptors_end_the_connection() {
        let (_, result) = relayed(|mut front, back| {
            let (file, _) = UnixStream::pair().unwrap();
            let fds = [file.as_raw_fd(); MAX_ATTACHED_FD_ENTRIES + 1];
            front
                .send_with_fds(&[message(5, &[]).as_slice()], &fds)
                .unwrap();
            assert_eq!(front.read(&mut [0; 1]).unwrap(), 0);
            drop(back);
        });

        assert!(result.is_err());
    }
}
