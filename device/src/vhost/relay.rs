// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Passes the messages between a front end's socket and the vhost-user crate, in order,
//! and sees in passing what the crate does not report: which protocol features were
//! negotiated, and the socket of the back-end channel.
//!
//! It knows the frame of a message (vhost-user specification, "Message
//! Specification") and judges nothing: what is wrong is the crate's to refuse, or
//! [`super::admission`]'s, which also takes out what the crate has no use for. A message
//! of which nothing is left is acknowledged here; one that came before it and asks for an
//! answer has had that, unless the front end did not wait for it. If the crate leaves,
//! everything is answered in its place (see [`super::replies`]).

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserProtocolFeatures,
};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::replies::{acknowledgement, refusal};

/// Bytes of a message's header: request, flags and size, each 32 bits.
pub(super) const HEADER: usize = 12;

/// How often [`Relay::refuse_all`] looks whether it is done.
const REFUSE_LOOK_MS: libc::c_int = 50;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The crate is to have it.
    Pass,
    /// There is nothing in it for the crate: it is acknowledged.
    Acknowledge,
    /// It is the last one.
    Refuse,
}

/// What is seen in passing, before the crate is.
pub trait Watch {
    /// The front end chose its protocol features.
    fn negotiated(&self, features: VhostUserProtocolFeatures);
    /// The front end gave a back-end channel; the socket is a duplicate.
    fn channel(&self, socket: UnixStream);
    /// The front end sent a message with descriptors, of which things may be taken out.
    fn admit(&self, request: u32, payload: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Verdict;
}

/// Ends a relay from any thread.
#[derive(Debug)]
pub struct Hangup {
    front: UnixStream,
    back: UnixStream,
}

impl Hangup {
    /// Closes the crate's side: it leaves.
    pub fn dismiss(&self) {
        let _ = self.back.shutdown(Shutdown::Both);
    }

    /// Closes both sides. The second call does nothing.
    pub fn hang_up(&self) {
        let _ = self.front.shutdown(Shutdown::Both);
        let _ = self.back.shutdown(Shutdown::Both);
    }
}

/// Who ended a relay.
#[derive(Debug)]
pub enum Left {
    /// The front end.
    Front(io::Result<()>),
    /// The crate, or a message that was not admitted; and the refusal that the front
    /// end waits for.
    Crate(Option<Vec<u8>>),
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
    /// crate. Blocks.
    pub fn run(&self, watch: &dyn Watch) -> Left {
        let left = self.pass_messages(watch);
        self.0.dismiss();
        left
    }

    fn pass_messages(&self, watch: &dyn Watch) -> Left {
        let Hangup { front, back } = &self.0;
        let front_left = |error: io::Error| {
            Left::Front(if is_hang_up(&error) {
                Ok(())
            } else {
                Err(error)
            })
        };
        // One that hung up waits for no answer.
        let crate_left = |open| {
            if self.front_hung_up() {
                Left::Front(Ok(()))
            } else {
                Left::Crate(open)
            }
        };
        // The last message, if it is yet to be answered.
        let mut open = None;
        // One that was admitted and waits until the crate can take it.
        let mut next: Option<Message> = None;
        loop {
            // What the crate says comes first, and nothing is sent that it would have to
            // take before it is heard: it may wait for that itself.
            let ready = match &next {
                None => wait([(back, libc::POLLIN), (front, libc::POLLIN)], -1),
                // The front end may hang up while its message waits.
                Some(_) => wait(
                    [
                        (back, libc::POLLIN),
                        (back, libc::POLLOUT),
                        (front, libc::POLLRDHUP),
                    ],
                    -1,
                ),
            };
            match ready {
                Ok(Some(0)) => {
                    let Ok(Some(answer)) = receive(back) else {
                        return crate_left(open);
                    };
                    open = open.filter(|refusal: &Vec<u8>| !answer.answers_as(refusal));
                    if let Err(error) = send(front, &answer) {
                        return front_left(error);
                    }
                }
                Ok(Some(2)) => return Left::Front(Ok(())),
                Ok(_) => {
                    if let Some(message) = next.take() {
                        if send(back, &message).is_err() {
                            return crate_left(open);
                        }
                        if message.oversized {
                            return Left::Front(Ok(()));
                        }
                        continue;
                    }
                    let mut message = match receive(front) {
                        Ok(Some(message)) => message,
                        Ok(None) => return Left::Front(Ok(())),
                        Err(error) => return front_left(error),
                    };
                    match message.admit(watch) {
                        Verdict::Pass => {
                            open = refusal(&message.bytes);
                            message.report(watch);
                            next = Some(message);
                        }
                        Verdict::Acknowledge => {
                            if let Some(answer) = acknowledgement(&message.bytes)
                                && let Err(error) = send(front, &Message::of(answer))
                            {
                                return front_left(error);
                            }
                        }
                        Verdict::Refuse => return Left::Crate(refusal(&message.bytes)),
                    }
                }
                Err(error) => return Left::Front(Err(error)),
            }
        }
    }

    /// Refuses what the front end asks, first what was `left` behind by the crate,
    /// until it hangs up or `done`. Looks now and then whether it is.
    pub fn refuse_all(&self, left: Option<Vec<u8>>, done: impl Fn() -> bool) {
        let front = &self.0.front;
        let mut answer = left;
        while !done() {
            if let Some(bytes) = answer.take()
                && send(front, &Message::of(bytes)).is_err()
            {
                return;
            }
            match wait([(front, libc::POLLIN)], REFUSE_LOOK_MS) {
                Ok(None) => {}
                Ok(Some(_)) => match receive(front) {
                    Ok(Some(message)) if !message.oversized => answer = refusal(&message.bytes),
                    _ => return,
                },
                Err(_) => return,
            }
        }
    }

    /// Whether the front end has hung up, or was hung up on, whatever it sent before.
    pub fn front_hung_up(&self) -> bool {
        // POLLHUP, and errors, need not be asked for.
        let hung_up = wait([(&self.0.front, libc::POLLRDHUP)], 0);
        !matches!(hung_up, Ok(None))
    }

    /// Hangs up on both.
    pub fn hang_up(&self) {
        self.0.hang_up();
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

/// The first of the sockets of which an event has come; none in the time given.
fn wait<const N: usize>(
    sockets: [(&UnixStream, libc::c_short); N],
    timeout_ms: libc::c_int,
) -> io::Result<Option<usize>> {
    loop {
        let mut fds = sockets.map(|(socket, events)| libc::pollfd {
            fd: socket.as_raw_fd(),
            events,
            revents: 0,
        });
        let count = libc::nfds_t::try_from(N).map_err(io::Error::other)?;
        // SAFETY: the array has the given length and outlives the call.
        let rc = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout_ms) };
        if rc < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        return Ok(fds.iter().position(|fd| fd.revents != 0));
    }
}

/// 32 bits of a message, in the host's byte order.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// One message with its descriptors.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// Its size is more than the crate takes, and was not read.
    oversized: bool,
}

impl Message {
    /// These bytes alone.
    fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            fds: Vec::new(),
            oversized: false,
        }
    }

    /// Whether both answer the same request.
    fn answers_as(&self, other: &[u8]) -> bool {
        word(&self.bytes, 0) == word(other, 0)
    }

    /// The first 64 bits of the payload.
    fn value(&self) -> Option<u64> {
        let bytes = self.bytes.get(HEADER..HEADER.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    /// What becomes of it, with its size as it is then.
    fn admit(&mut self, watch: &dyn Watch) -> Verdict {
        // The crate refuses one that is too long.
        if self.oversized {
            return Verdict::Pass;
        }
        let request = word(&self.bytes, 0).unwrap_or_default();
        let mut payload = self.bytes.split_off(HEADER.min(self.bytes.len()));
        let verdict = watch.admit(request, &mut payload, &mut self.fds);
        let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if let Some(word) = self.bytes.get_mut(8..HEADER) {
            word.copy_from_slice(&size.to_ne_bytes());
        }
        self.bytes.append(&mut payload);
        verdict
    }

    fn report(&self, watch: &dyn Watch) {
        let code = word(&self.bytes, 0).unwrap_or_default();
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

/// The next message; none at the end.
fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut message = Message::of(vec![0; HEADER]);
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
            let size = word(&message.bytes, 8).unwrap_or_default();
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
    /// Messages that tests have refused, given other descriptors and a byte less, or taken
    /// all out of.
    const REFUSED: u32 = 101;
    const REPLACED: u32 = 102;
    const EMPTIED: u32 = 103;

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

        fn admit(&self, request: u32, payload: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Verdict {
            match request {
                REPLACED => {
                    fds.reverse();
                    payload.pop();
                    Verdict::Pass
                }
                REFUSED => {
                    assert_eq!(*payload, [6; 3]);
                    Verdict::Refuse
                }
                EMPTIED => Verdict::Acknowledge,
                _ => Verdict::Pass,
            }
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
    fn relayed(test: impl FnOnce(UnixStream, UnixStream)) -> (Seen, Left) {
        let (front, far) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(front).unwrap();
        let back = listener.accept().unwrap().unwrap();
        let seen = Seen::default();
        let result = std::thread::scope(|scope| {
            let relay = scope.spawn(|| {
                let left = relay.run(&seen);
                relay.hang_up();
                left
            });
            test(far, back);
            relay.join().unwrap()
        });
        (seen, result)
    }

    fn well(left: Left) {
        if let Left::Front(result) = left {
            result.unwrap();
        }
    }

    fn expect(socket: &mut UnixStream, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        let limit = crate::soon::soon();
        socket.set_read_timeout(Some(limit)).unwrap();
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

        well(result);
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

        well(result);
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

        well(result);
    }

    #[test]
    fn message_that_is_not_admitted_is_not_passed_on_and_is_the_last() {
        let (_, result) = relayed(|mut front, mut back| {
            let mut bytes = message(REFUSED, &[6; 3]);
            // It wants an acknowledgement.
            bytes[4] |= 8;
            front.write_all(&bytes).unwrap();
            assert_eq!(back.read(&mut [0; 1]).unwrap(), 0);
        });

        let Left::Crate(Some(answer)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(word(&answer, 0), Some(REFUSED));
    }

    #[test]
    fn message_of_which_nothing_is_left_is_acknowledged_and_not_passed_on() {
        let (_, result) = relayed(|mut front, mut back| {
            let mut bytes = message(EMPTIED, &[1; 40]);
            // Nothing is said to one that does not ask.
            front.write_all(&bytes).unwrap();
            bytes[4] |= 8;
            front.write_all(&bytes).unwrap();
            let mut answer = message(EMPTIED, &[0; 8]);
            answer[4] = 5;
            expect(&mut front, &answer);

            front.write_all(&message(1, &[])).unwrap();
            expect(&mut back, &message(1, &[]));
            back.write_all(&message(1, &[5; 8])).unwrap();
            expect(&mut front, &message(1, &[5; 8]));
        });

        well(result);
    }

    #[test]
    fn what_the_crate_owes_is_known_after_a_message_that_was_acknowledged() {
        let (_, result) = relayed(|mut front, mut back| {
            let mut asks = message(1, &[]);
            asks[4] |= 8;
            front.write_all(&asks).unwrap();
            expect(&mut back, &asks);
            let mut bytes = message(EMPTIED, &[]);
            bytes[4] |= 8;
            front.write_all(&bytes).unwrap();
            let mut answer = message(EMPTIED, &[0; 8]);
            answer[4] = 5;
            expect(&mut front, &answer);
            drop(back);
            // The relay ends, and with it the test's hold on the front end.
            assert_eq!(front.read(&mut [0; 1]).unwrap(), 0);
        });

        let Left::Crate(Some(answer)) = result else {
            panic!("{result:?}");
        };
        assert_eq!(word(&answer, 0), Some(1));
    }

    #[test]
    fn descriptors_and_payload_can_be_replaced() {
        let (_, result) = relayed(|front, back| {
            let (one, two) = std::io::pipe().unwrap();
            let fds = [one.as_raw_fd(), two.as_raw_fd()];
            let bytes = message(REPLACED, &[7, 8]);
            front.send_with_fds(&[bytes.as_slice()], &fds).unwrap();

            let got = receive(&back).unwrap().unwrap();

            assert_eq!(got.bytes, message(REPLACED, &[7]));

            let mut writer = std::fs::File::from(got.fds.into_iter().next().unwrap());
            writer.write_all(&[1]).unwrap();
        });

        well(result);
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

        well(result);
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

        well(result);
    }

    #[test]
    fn hang_up_of_one_is_a_hang_up_for_the_other() {
        let (_, result) = relayed(|mut front, back| {
            drop(back);
            assert_eq!(front.read(&mut [0; 1]).unwrap(), 0);
        });
        well(result);

        let (_, result) = relayed(|mut front, mut back| {
            front.write_all(&[1, 2, 3]).unwrap();
            drop(front);
            assert_eq!(back.read(&mut [0; 1]).unwrap(), 0);
        });
        well(result);
    }

    #[test]
    fn hang_up_of_both_is_one_of_the_front_end() {
        let (front, far) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(front).unwrap();
        relay.hangup().unwrap().hang_up();

        let left = relay.run(&Seen::default());

        assert!(matches!(left, Left::Front(Ok(()))), "{left:?}");
        drop((far, listener));
    }

    #[test]
    fn what_the_crate_leaves_behind_is_refused_and_so_is_what_follows() {
        let (mut front, far) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(far).unwrap();
        let mut back = listener.accept().unwrap().unwrap();
        let code = u32::from(FrontendReq::GET_VRING_BASE);
        let seen = Seen::default();
        let base = |index: u8| [index, 0, 0, 0, 0, 0, 0, 0];

        std::thread::scope(|scope| {
            scope.spawn(|| match relay.run(&seen) {
                Left::Crate(left) => relay.refuse_all(left, || false),
                other => panic!("{other:?}"),
            });
            front.write_all(&message(1, &[])).unwrap();
            expect(&mut back, &message(1, &[]));
            back.write_all(&message(1, &[5; 8])).unwrap();
            front.write_all(&message(code, &base(1))).unwrap();
            expect(&mut back, &message(code, &base(1)));
            drop(back);

            expect(&mut front, &message(1, &[5; 8]));
            for index in [1, 0] {
                let mut answer = message(code, &base(index));
                answer[4] = 5;
                expect(&mut front, &answer);
                front.write_all(&message(code, &base(0))).unwrap();
            }
            front.shutdown(Shutdown::Both).unwrap();
        });
    }

    #[test]
    fn refusing_ends_when_it_may() {
        let (front, far) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(far).unwrap();
        drop(listener);
        let looks = std::cell::Cell::new(0);

        relay.refuse_all(None, || looks.replace(looks.get() + 1) == 3);

        assert_eq!(looks.get(), 4);
        drop(front);
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

        assert!(matches!(result, Left::Front(Err(_))));
    }
}
