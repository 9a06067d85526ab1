// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver that keeps so many requests in flight and does as little as it can beside: what
//! is measured is the device

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use bufshare_protocol::request::Request;
use bufshare_protocol::status::Status;
use bufshare_protocol::wire::Resp;

use crate::common::frontend::{FrontEnd, Options, RingPlace};
use crate::common::soon;
use crate::echo::ANSWER;

/// Requests that can be in flight: each has two descriptors.
pub const SLOTS: u16 = SIZE / 2;

const SIZE: u16 = 64;
const CONTROL: RingPlace = RingPlace {
    size: SIZE,
    desc: 0x1000,
    avail: 0x2000,
    used: 0x3000,
};
/// No buffer is ever made available here.
const EVENTS: RingPlace = RingPlace {
    size: SIZE,
    desc: 0x4000,
    avail: 0x5000,
    used: 0x6000,
};
const REQUESTS: u64 = 0x1_0000;
const ANSWERS: u64 = 0x10_0000;
/// Bytes for each of them.
const ROOM: u64 = 0x1000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const STATUS: u64 = std::mem::offset_of!(Resp, status) as u64;
const COOKIE: u64 = std::mem::offset_of!(Resp, cookie) as u64;

pub struct Driver {
    front: FrontEnd,
    avail: u16,
    used: u16,
}

impl Driver {
    /// Connects and lays out the chains, which are then made available again and again.
    pub fn start(path: &Path, options: &Options, request: &Request) -> Self {
        let mut front = FrontEnd::connect(path, options);
        for slot in 0..SLOTS {
            let at = u64::from(slot) * ROOM;
            let bytes = request.encode(u64::from(slot));
            front.ram.write(REQUESTS + at, &bytes);
            let head = slot * 2;
            let len = u32::try_from(bytes.len()).unwrap();
            descriptor(&front, head, REQUESTS + at, len, NEXT);
            let room = u32::try_from(ROOM).unwrap();
            descriptor(&front, head + 1, ANSWERS + at, room, WRITE);
        }
        front.start(&[CONTROL, EVENTS], &[0, 0]);
        let used = 0;
        Self {
            front,
            avail: 0,
            used,
        }
    }

    /// Requests for each second, with `in_flight` of them at all times.
    pub fn rate(&mut self, in_flight: u16, requests: u32) -> f64 {
        let start = Instant::now();
        let mut sent = 0;
        let mut done = 0;
        let old = self.avail;
        for slot in (0..in_flight).take(usize::try_from(requests).unwrap()) {
            self.publish(slot);
            sent += 1;
        }
        self.kick(old);
        while done < requests {
            let old = self.avail;
            while let Some(slot) = self.take() {
                done += 1;
                if sent < requests {
                    self.publish(slot);
                    sent += 1;
                }
            }
            if self.avail != old {
                self.kick(old);
            }
            if done < requests && self.ask_for_calls() {
                self.wait_call();
            }
        }
        f64::from(requests) / start.elapsed().as_secs_f64()
    }

    /// The answer that came last in this place.
    pub fn answer(&self, slot: u16) -> Vec<u8> {
        self.front
            .ram
            .read(ANSWERS + u64::from(slot) * ROOM, ANSWER)
    }

    fn publish(&mut self, slot: u16) {
        let ram = &self.front.ram;
        // So that an answer that is not written is seen to be missing.
        ram.write_u32(ANSWERS + u64::from(slot) * ROOM + STATUS, u32::MAX);
        let at = CONTROL.avail + 4 + u64::from(self.avail % SIZE) * 2;
        ram.write_u16(at, slot * 2);
        self.avail = self.avail.wrapping_add(1);
        ram.write_u16(CONTROL.avail + 2, self.avail);
    }

    /// Kicks, if the device wants to be kicked for what is new since `old`.
    fn kick(&self, old: u16) {
        fence(Ordering::SeqCst);
        let at = CONTROL.used + 4 + u64::from(SIZE) * 8;
        let event = self.front.ram.read_u16(at);
        let new = self.avail;
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.front.rings[0].kick.write(1).unwrap();
        }
    }

    /// Takes an answer, and sees that it is one. Its slot.
    fn take(&mut self) -> Option<u16> {
        let ram = &self.front.ram;
        if ram.read_u16(CONTROL.used + 2) == self.used {
            return None;
        }
        let at = CONTROL.used + 4 + u64::from(self.used % SIZE) * 8;
        let slot = ram.read_u32(at) / 2;
        assert_eq!(ram.read_u32(at + 4), u32::try_from(ANSWER).unwrap());
        let answer = ANSWERS + u64::from(slot) * ROOM;
        assert_eq!(ram.read_u32(answer + STATUS), Status::Ok.to_wire());
        assert_eq!(ram.read_u32(answer + COOKIE), slot);
        self.used = self.used.wrapping_add(1);
        Some(u16::try_from(slot).unwrap())
    }

    /// Asks to be signalled. Whether nothing came meanwhile.
    fn ask_for_calls(&self) -> bool {
        let ram = &self.front.ram;
        ram.write_u16(CONTROL.avail + 4 + u64::from(SIZE) * 2, self.used);
        fence(Ordering::SeqCst);
        ram.read_u16(CONTROL.used + 2) == self.used
    }

    /// Sleeps until the device signals, as a guest that is idle does.
    fn wait_call(&self) {
        let call = &self.front.rings[0].call;
        let mut fd = libc::pollfd {
            fd: call.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = i32::try_from(soon().as_millis()).unwrap();
        // SAFETY: one entry, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, limit) };
        assert_eq!(ready, 1, "no answer");
        call.read().unwrap();
    }
}

fn descriptor(front: &FrontEnd, index: u16, addr: u64, len: u32, flags: u16) {
    let at = CONTROL.desc + u64::from(index) * 16;
    front.ram.write(at, &addr.to_le_bytes());
    front.ram.write(at + 8, &len.to_le_bytes());
    front.ram.write(at + 12, &flags.to_le_bytes());
    front.ram.write(at + 14, &(index + 1).to_le_bytes());
}
