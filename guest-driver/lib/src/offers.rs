// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The buffers that other VMs offer: those there are, then what changes

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::{BufferId, BufferInfo, Device, Event, EventKind};

/// What [`Offers`] reports
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// This VM may import the buffer, or, [if it is one](BufferInfo::is_stream), join the stream
    /// ([`Device::join`]). Reported once for each.
    #[non_exhaustive]
    Offered {
        /// What is known of it.
        buffer: BufferInfo,
        /// The event of it; `None` if it was there before, or if its event was
        /// lost.
        event: Option<Event>,
    },
    /// An offered buffer or stream has new metadata, for [`Device::get_meta`] to fetch. Changes that follow
    /// each other closely may be reported as one.
    #[non_exhaustive]
    Metadata {
        /// As it was when it was offered or listed, but for [`BufferInfo::meta_seq`], which is
        /// that of the new metadata.
        buffer: BufferInfo,
        /// The event of it; `None` if that was lost.
        event: Option<Event>,
    },
    /// An offered buffer cannot be imported any more, and imports of it are of
    /// no use; or a stream is over. Reported once for each that was offered.
    #[non_exhaustive]
    Revoked {
        /// As it was when it was offered.
        buffer: BufferInfo,
        /// The event of it; `None` if that was lost.
        event: Option<Event>,
    },
    /// Any other event: of a peer, of a buffer of this VM, of a further import of a revoked
    /// buffer, or that events were lost. After many events in a row that changed nothing, one of
    /// those.
    ///
    /// After an [`Overflow`](EventKind::Overflow), what was lost of offers is reported as the
    /// other changes. Of the rest nobody keeps account here: who imports or exports looks after
    /// each as [`EventKind::Overflow`] says, and [`Device::peers`] says which peers run.
    Other(Event),
}

/// The buffers and streams that other VMs offer: those there are, then what changes
///
/// Events alone do not show the buffers that were offered before the device
/// was opened, and a list alone shows no changes. Here no buffer is missed and
/// none is reported twice, also when events are lost because nobody read them: the host is asked
/// for the list at the start and after each loss, and what it says is compared with what was
/// reported.
///
/// # In an event loop
/// Poll the [descriptor](AsFd) for reading. At the start, before the first poll, and whenever it
/// is readable or hung up, call [`next_change`](Self::next_change) with a timeout of zero until
/// it returns `None`. Other VMs may keep it from ever doing so: a loop that has more to do may stop
/// before, if it calls it again without a poll. Each call reads at most some 64 events. When it
/// fails because the host did not answer (`ETIMEDOUT`), call it again
/// after some time, too: the descriptor may not become readable for that.
///
/// `next_change` with a timeout of zero does not wait for events. But where an event alone is not
/// enough to know, it asks the host, and waits for that answer as [`Device`] says: at the start,
/// after a loss, and for each new offer. A loop that cannot have that reads the changes on a
/// thread of its own. `examples/event_loop.rs` imports on a thread of its own:
///
/// ```no_run
#[doc = include_str!("../examples/event_loop.rs")]
/// ```
#[derive(Debug)]
pub struct Offers {
    device: Device,
    book: Book,
}

impl Offers {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            book: Book::default(),
        }
    }

    /// Those of one peer alone: what others offer is not asked for, and its events come as
    /// [`Change::Other`].
    pub(crate) fn of_peer(device: Device, peer: u64) -> Self {
        Self {
            device,
            book: Book {
                peer: Some(peer),
                ..Book::default()
            },
        }
    }

    /// The device, for everything but its events: whoever reads one by
    /// [`Device::next_event`] keeps it from the offers.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits for the next change; `None` if there was none in time. Without a
    /// timeout it waits as long as it takes, with one of zero for no event. A signal does not
    /// end the wait. The host may be asked, whose answer is waited for also after the timeout.
    ///
    /// # Errors
    /// The device is gone (`ENODEV`), which is the end; or the host does not answer. No change
    /// is lost then: the next call asks again. Or an event makes no sense (`EPROTO`), see
    /// [`Device::next_event`].
    pub fn next_change(&mut self, timeout: Option<Duration>) -> Result<Option<Change>> {
        self.book.next(&self.device, timeout)
    }
}

impl AsRawFd for Offers {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl AsFd for Offers {
    /// For `poll`: that of the [`Device`], readable when there may be a change.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Whom [`Book`] asks
trait Source {
    fn list(&self) -> Result<Vec<BufferInfo>>;
    fn query(&self, id: BufferId) -> Result<BufferInfo>;
    fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>>;
}

impl Source for Device {
    fn list(&self) -> Result<Vec<BufferInfo>> {
        Self::list(self)
    }

    fn query(&self, id: BufferId) -> Result<BufferInfo> {
        Self::query(self, id)
    }

    fn next_event(&self, timeout: Option<Duration>) -> Result<Option<Event>> {
        Self::next_event(self, timeout)
    }
}

/// What was reported, and what is known to be not
///
/// The list is newer than events that wait to be read. So an OFFER may be of a
/// buffer that the list had, or of one that is gone: the host is asked. A META may be of
/// metadata that the answer had: its number says so. No id
/// is used twice, so that what is gone stays so.
#[derive(Debug, Default)]
struct Book {
    /// Whose offers count; `None`: those of all.
    peer: Option<u64>,
    /// What was reported as offered.
    offered: BTreeMap<BufferId, BufferInfo>,
    /// Reported next.
    ready: VecDeque<Change>,
    /// The list was read since the start, and since events were lost.
    listed: bool,
    /// An OFFER whose buffer has not been looked up yet.
    unknown: Option<Event>,
}

impl Book {
    fn next(&mut self, source: &impl Source, timeout: Option<Duration>) -> Result<Option<Change>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut read = 0;
        loop {
            if !self.listed {
                self.compare(source.list()?);
                self.listed = true;
            }
            if let Some(event) = self.unknown.clone() {
                self.look_up(source, event)?;
                self.unknown = None;
            }
            if let Some(change) = self.ready.pop_front() {
                return Ok(Some(change));
            }
            match source.next_event(left())? {
                Some(event) => {
                    read = u32::saturating_add(read, 1);
                    let idle = (read > MAX_IDLE).then(|| event.clone());
                    self.take(event);
                    if self.ready.is_empty() && self.unknown.is_none() {
                        self.ready.extend(idle.map(Change::Other));
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// Whether the offers of that peer count.
    fn heeds(&self, peer: u64) -> bool {
        self.peer.is_none_or(|only| only == peer)
    }

    /// Reports how the list differs from what was reported.
    fn compare(&mut self, mut list: Vec<BufferInfo>) {
        list.retain(|buffer| !buffer.owned && self.heeds(buffer.owner));
        let now: BTreeSet<_> = list.iter().map(|buffer| buffer.id).collect();
        let ready = &mut self.ready;
        self.offered.retain(|id, buffer| {
            let still = now.contains(id);
            if !still {
                ready.push_back(Change::Revoked {
                    buffer: buffer.clone(),
                    event: None,
                });
            }
            still
        });
        // In the order of the list, which is that of the exports.
        for buffer in list {
            if self.offered.contains_key(&buffer.id) {
                self.describe(buffer, None);
            } else {
                self.offer(buffer, None);
            }
        }
    }

    fn offer(&mut self, buffer: BufferInfo, event: Option<Event>) {
        if self.offered.insert(buffer.id, buffer.clone()).is_none() {
            self.ready.push_back(Change::Offered { buffer, event });
        }
    }

    /// An offered buffer has this metadata, which may be known.
    fn describe(&mut self, buffer: BufferInfo, event: Option<Event>) {
        if let Some(known) = self.offered.get_mut(&buffer.id)
            && known.meta_seq < buffer.meta_seq
        {
            *known = buffer.clone();
            self.ready.push_back(Change::Metadata { buffer, event });
        }
    }

    fn take(&mut self, event: Event) {
        match event.kind {
            EventKind::Offer if self.offered.contains_key(&event.id) => {}
            EventKind::Offer if !self.heeds(event.peer) => {
                self.ready.push_back(Change::Other(event));
            }
            EventKind::Offer => self.unknown = Some(event),
            EventKind::Meta => match self.offered.get(&event.id) {
                Some(known) => {
                    let mut buffer = known.clone();
                    buffer.meta_seq = event.value;
                    self.describe(buffer, Some(event));
                }
                None => self.ready.push_back(Change::Other(event)),
            },
            EventKind::Revoked => self.ready.push_back(match self.offered.remove(&event.id) {
                Some(buffer) => Change::Revoked {
                    buffer,
                    event: Some(event),
                },
                None => Change::Other(event),
            }),
            EventKind::Overflow => {
                self.listed = false;
                self.ready.push_back(Change::Other(event));
            }
            _ => self.ready.push_back(Change::Other(event)),
        }
    }

    fn look_up(&mut self, source: &impl Source, event: Event) -> Result<()> {
        match source.query(event.id) {
            Ok(buffer) => self.offer(buffer, Some(event)),
            // Revoked meanwhile.
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Events that a call takes which change nothing, before it returns one. Other VMs can have as
/// many as they like, and whoever waits for no event is to get out of the call.
pub(crate) const MAX_IDLE: u32 = 64;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rustix::io::Errno;

    use super::*;
    use crate::{Error, Operation, Rights, Status};

    const NOW: Option<Duration> = Some(Duration::ZERO);

    /// A host with some buffers, and the events that wait to be read.
    #[derive(Default)]
    struct Host {
        buffers: RefCell<Vec<BufferInfo>>,
        events: RefCell<VecDeque<Event>>,
        /// The next request fails.
        silent: RefCell<bool>,
    }

    fn id(n: u8) -> BufferId {
        BufferId([n; 16])
    }

    fn event(kind: EventKind, n: u8) -> Event {
        Event {
            seq: 1,
            peer: 2,
            id: id(n),
            value: 4096,
            ..Event::new(kind)
        }
    }

    fn buffer(n: u8) -> BufferInfo {
        BufferInfo {
            id: id(n),
            owner: 2,
            size: 4096,
            generation: n.into(),
            meta_seq: 1,
            rights: Rights::RW,
            ..BufferInfo::default()
        }
    }

    impl Host {
        fn export(&self, n: u8) {
            self.buffers.borrow_mut().push(buffer(n));
            self.report(EventKind::Offer, n);
        }

        fn revoke(&self, n: u8) {
            self.buffers
                .borrow_mut()
                .retain(|buffer| buffer.id != id(n));
            self.report(EventKind::Revoked, n);
        }

        /// Its metadata changes for the `seq`th time.
        fn set_meta(&self, n: u8, seq: u64) {
            let mut buffers = self.buffers.borrow_mut();
            let buffer = buffers.iter_mut().find(|buffer| buffer.id == id(n));
            buffer.unwrap().meta_seq = seq;
            self.events.borrow_mut().push_back(Event {
                value: seq,
                ..event(EventKind::Meta, n)
            });
        }

        fn report(&self, kind: EventKind, n: u8) {
            self.events.borrow_mut().push_back(event(kind, n));
        }

        /// The file has room for no event.
        fn lose_events(&self) {
            self.events.borrow_mut().clear();
            self.report(EventKind::Overflow, 0);
        }

        fn answer(&self) -> Result<()> {
            match self.silent.replace(false) {
                true => Err(Error::new(Operation::List, Errno::TIMEDOUT)),
                false => Ok(()),
            }
        }
    }

    impl Source for Host {
        fn list(&self) -> Result<Vec<BufferInfo>> {
            self.answer()?;
            Ok(self.buffers.borrow().clone())
        }

        fn query(&self, id: BufferId) -> Result<BufferInfo> {
            self.answer()?;
            let buffers = self.buffers.borrow();
            let found = buffers.iter().find(|buffer| buffer.id == id);
            let status = Status::NotFound.number();
            let gone = || Error::of_host(Operation::Query, Errno::NOENT.into(), status);
            found.cloned().ok_or_else(gone)
        }

        fn next_event(&self, _: Option<Duration>) -> Result<Option<Event>> {
            Ok(self.events.borrow_mut().pop_front())
        }
    }

    /// All changes there are, in short: +1 offered, -1 revoked, ~1 metadata; with ! for those
    /// without event; others by name.
    fn changes(book: &mut Book, host: &Host) -> Vec<String> {
        let short = |change| match change {
            Change::Offered { buffer, event } => ('+', buffer.id, event),
            Change::Metadata { buffer, event } => ('~', buffer.id, event),
            Change::Revoked { buffer, event } => ('-', buffer.id, event),
            Change::Other(event) => (event.kind.name().chars().next().unwrap(), event.id, None),
        };
        std::iter::from_fn(|| book.next(host, NOW).unwrap())
            .map(short)
            .map(|(sign, id, event)| {
                let listed = if event.is_none() { "!" } else { "" };
                format!("{sign}{}{listed}", id.0[0])
            })
            .collect()
    }

    #[test]
    fn what_was_there_before_comes_first_and_once() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(3);
        // The device was opened here.
        host.events.borrow_mut().clear();
        host.export(1);
        host.export(2);
        assert_eq!(changes(&mut book, &host), ["+3!", "+1!", "+2!"]);
        host.export(4);
        host.revoke(1);
        assert_eq!(changes(&mut book, &host), ["+4", "-1"]);
        assert_eq!(changes(&mut book, &host), [""; 0]);
    }

    #[test]
    fn what_is_gone_again_is_not_offered() {
        let (host, mut book) = (Host::default(), Book::default());
        assert_eq!(changes(&mut book, &host), [""; 0]);
        host.export(1);
        host.revoke(1);
        host.export(2);
        assert_eq!(changes(&mut book, &host), ["R1!", "+2"]);
    }

    #[test]
    fn own_buffers_are_not_offers() {
        let (host, mut book) = (Host::default(), Book::default());
        host.buffers.borrow_mut().push(BufferInfo {
            owned: true,
            ..buffer(1)
        });
        host.report(EventKind::Revoked, 1);
        assert_eq!(changes(&mut book, &host), ["R1!"]);
    }

    #[test]
    fn a_buffer_is_revoked_once_whatever_imports_it_had() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        assert_eq!(changes(&mut book, &host), ["+1!"]);
        host.revoke(1);
        host.report(EventKind::Revoked, 1);
        assert_eq!(changes(&mut book, &host), ["-1", "R1!"]);
    }

    #[test]
    fn lost_events_are_made_good_from_the_list() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        host.export(2);
        assert_eq!(changes(&mut book, &host), ["+1!", "+2!"]);
        host.revoke(1);
        host.export(3);
        host.lose_events();
        host.report(EventKind::Offer, 3);
        host.export(4);
        assert_eq!(changes(&mut book, &host), ["O0!", "-1!", "+3!", "+4!"]);
        assert_eq!(changes(&mut book, &host), [""; 0]);
    }

    #[test]
    fn a_stale_offer_of_a_revoked_buffer_does_not_bring_it_back() {
        let (host, mut book) = (Host::default(), Book::default());
        host.lose_events();
        host.export(1);
        // Offered by the first list, gone in the second; then come their events.
        assert_eq!(book.next(&host, NOW).unwrap().map(drop), Some(()));
        host.revoke(1);
        assert_eq!(changes(&mut book, &host), ["O0!", "-1!", "R1!"]);
    }

    #[test]
    fn a_request_without_answer_loses_nothing() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        *host.silent.borrow_mut() = true;
        assert!(book.next(&host, NOW).is_err());
        assert_eq!(changes(&mut book, &host), ["+1!"]);
        host.export(2);
        *host.silent.borrow_mut() = true;
        assert!(book.next(&host, NOW).is_err());
        assert_eq!(changes(&mut book, &host), ["+2"]);
    }

    #[test]
    fn metadata_is_reported_when_it_is_new_and_once() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        host.set_meta(1, 2);
        host.export(2);
        // The list had it, so that its event is stale.
        assert_eq!(changes(&mut book, &host), ["+1!", "+2!"]);
        host.set_meta(1, 3);
        assert_eq!(changes(&mut book, &host), ["~1"]);
        host.set_meta(2, 2);
        host.set_meta(2, 3);
        assert_eq!(changes(&mut book, &host), ["~2", "~2"]);
        // The answer to the question about the offer has it.
        host.export(3);
        host.set_meta(3, 2);
        assert_eq!(changes(&mut book, &host), ["+3"]);
    }

    #[test]
    fn lost_metadata_is_made_good_from_the_list() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        host.export(2);
        assert_eq!(changes(&mut book, &host), ["+1!", "+2!"]);
        host.set_meta(1, 5);
        host.lose_events();
        host.set_meta(2, 2);
        assert_eq!(changes(&mut book, &host), ["O0!", "~1!", "~2!"]);
        host.lose_events();
        assert_eq!(changes(&mut book, &host), ["O0!"]);
    }

    #[test]
    fn metadata_of_what_is_not_offered_is_passed_on() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        assert_eq!(changes(&mut book, &host), ["+1!"]);
        host.revoke(1);
        host.report(EventKind::Meta, 1);
        assert_eq!(changes(&mut book, &host), ["-1", "M1!"]);
    }

    #[test]
    fn events_that_change_nothing_end_a_call_when_they_are_many() {
        let (host, mut book) = (Host::default(), Book::default());
        host.export(1);
        assert_eq!(changes(&mut book, &host), ["+1!"]);
        for _ in 0..66 {
            host.report(EventKind::Offer, 1);
        }
        let change = book.next(&host, NOW).unwrap();
        assert!(matches!(change, Some(Change::Other(_))), "{change:?}");
        assert_eq!(host.events.borrow().len(), 1);
        assert_eq!(changes(&mut book, &host), [""; 0]);
    }

    #[test]
    fn what_others_offer_is_not_asked_for_if_only_one_peer_counts() {
        let host = Host::default();
        let mut book = Book {
            peer: Some(3),
            ..Book::default()
        };
        host.export(1);
        assert_eq!(changes(&mut book, &host), ["O1!"]);
        // A question would fail.
        host.report(EventKind::Offer, 2);
        *host.silent.borrow_mut() = true;
        assert_eq!(changes(&mut book, &host), ["O2!"]);
    }

    #[test]
    fn all_else_is_passed_on() {
        let (host, mut book) = (Host::default(), Book::default());
        host.report(EventKind::Released, 1);
        host.report(EventKind::PeerUp, 0);
        host.report(EventKind::Unknown(4711), 0);
        assert_eq!(changes(&mut book, &host), ["R1!", "P0!", "U0!"]);
    }
}
