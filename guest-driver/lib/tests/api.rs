// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What programs may rely on of the types: threads, descriptors, errors

use std::error::Error as StdError;
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bufshare::{
    Access, BufferId, BufferInfo, Change, Clock, Colour, Consumer, CpuAccess, Device, DmaBuf,
    Error, Event, EventKind, Export, ExportOptions, Frame, FrameImport, FrameRecord, FrameTime,
    Image, Import, Info, InvalidName, Joined, Luminance, Mapping, Meta, MissingFeature, Name,
    Offers, Operation, ParseIdError, Peer, Plane, Producer, Properties, Push, PushedFrame, Rect,
    Rights, Slot, Status, Stream, Way,
};

fn shared<T: Send + Sync + Debug + 'static>() {}
fn value<T: Clone + PartialEq>() {}
fn number<T: Copy + Eq + Hash>() {}
fn error<T: StdError + Display>() {}
fn polled<T: AsFd + AsRawFd>() {}

#[test]
fn all_but_mappings_are_shared_by_threads() {
    shared::<Device>();
    shared::<Offers>();
    shared::<DmaBuf>();
    shared::<Import>();
    shared::<Export>();
    shared::<FrameImport>();
    shared::<Stream>();
    shared::<Joined>();
    shared::<Push<'static>>();
    shared::<PushedFrame>();
    shared::<FrameRecord>();
    shared::<ExportOptions>();
    shared::<Access>();
    shared::<Info>();
    shared::<Peer>();
    shared::<BufferInfo>();
    shared::<BufferId>();
    shared::<Name>();
    shared::<Meta>();
    shared::<Image>();
    shared::<Plane>();
    shared::<Rights>();
    shared::<Properties>();
    shared::<Way>();
    shared::<Event>();
    shared::<EventKind>();
    shared::<Change>();
    shared::<MissingFeature>();
    shared::<Operation>();
    shared::<Status>();
    shared::<Error>();
    shared::<InvalidName>();
    shared::<ParseIdError>();
}

/// Has one function for a type that is not `T: $limit`, and two for one that is: to name it then
/// does not compile.
macro_rules! lacks {
    ($limit:ident: $($type:ty),+) => {{
        trait Ambiguous<Which> {
            fn name() {}
        }
        impl<T: ?Sized> Ambiguous<()> for T {}
        impl<T: ?Sized + $limit> Ambiguous<u8> for T {}
        $(<$type as Ambiguous<_>>::name();)+
    }};
}

#[test]
fn a_mapping_goes_from_thread_to_thread_and_is_not_used_by_two() {
    fn sent<T: Send + Debug>() {}
    sent::<Mapping>();
    // These have mappings.
    sent::<Producer>();
    sent::<Slot>();
    sent::<Consumer>();
    sent::<Frame>();
    lacks!(Sync: Mapping, CpuAccess<'static>);
    // It borrows the mapping, which another thread must not use.
    lacks!(Send: CpuAccess<'static>);
}

#[test]
fn what_can_be_polled_has_its_descriptor() {
    polled::<Device>();
    polled::<Offers>();
    polled::<Producer>();
    polled::<Consumer>();
    polled::<DmaBuf>();
    polled::<Import>();
    polled::<FrameImport>();
    polled::<Export>();
    polled::<Stream>();
    fn owned<T: Into<OwnedFd>>() {}
    owned::<DmaBuf>();
    owned::<Export>();
    owned::<Stream>();
}

#[test]
fn values_are_cloned_and_compared() {
    value::<ExportOptions>();
    value::<Access>();
    value::<Info>();
    value::<Peer>();
    value::<BufferInfo>();
    value::<Meta>();
    value::<Change>();
    value::<Event>();
    value::<FrameRecord>();
    value::<PushedFrame>();
    value::<MissingFeature>();
    number::<BufferId>();
    number::<Rights>();
    number::<Name>();
    number::<Properties>();
    number::<Way>();
    number::<Clock>();
    number::<Rect>();
    number::<FrameTime>();
    number::<Colour>();
    number::<Luminance>();
    number::<EventKind>();
    number::<Operation>();
    number::<Status>();
}

#[test]
fn errors_are_those_of_the_standard_library() {
    error::<Error>();
    error::<InvalidName>();
    error::<ParseIdError>();
    let none = || Device::open_at("/nonexistent/bufshare").unwrap_err();
    let boxed: Box<dyn StdError + Send + Sync> = none().into();
    assert_eq!(boxed.to_string(), none().to_string());
    assert_eq!(io::Error::from(none()).kind(), io::ErrorKind::NotFound);
    assert_eq!(none().op, Operation::Open);
}
