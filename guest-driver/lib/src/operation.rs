// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a call of this library tries

use std::fmt;

macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)+) => {
        /// What was tried when an [`Error`](crate::Error) came of it
        ///
        /// [`Display`](fmt::Display) completes "cannot …".
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[$doc])* $variant,)+
        }

        impl fmt::Display for Operation {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text,)+
                })
            }
        }
    };
}

operations! {
    /// [`Device::open`](crate::Device::open)
    Open = "open the bufshare device";
    /// [`Device::info`](crate::Device::info)
    Info = "ask for the device's limits";
    /// [`Device::check_frames`](crate::Device::check_frames)
    HandOver = "hand frames over";
    /// [`Device::missing_features`](crate::Device::missing_features)
    MissingFeatures = "read what the kernel cannot do";
    /// [`Device::peers`](crate::Device::peers) and [`peer`](crate::Device::peer)
    Peers = "list the peers";
    /// [`Consumer::named`](crate::Consumer::named)
    FindPeer = "find the peer";
    /// [`Device::list`](crate::Device::list)
    List = "list the buffers";
    /// [`Device::query`](crate::Device::query)
    Query = "ask about the buffer";
    /// [`Device::alloc`](crate::Device::alloc)
    Alloc = "allocate a buffer";
    /// [`Device::export`](crate::Device::export)
    Export = "export the buffer";
    /// [`Device::import`](crate::Device::import) and
    /// [`import_if_offered`](crate::Device::import_if_offered)
    Import = "import the buffer";
    /// [`Device::consume`](crate::Device::consume)
    Consume = "consume the frames of the buffer";
    /// [`Device::create_stream`](crate::Device::create_stream)
    CreateStream = "create the stream";
    /// [`Device::join`](crate::Device::join)
    Join = "join the stream";
    /// [`Device::push`](crate::Device::push)
    Push = "push the frame";
    /// [`Device::give_back`](crate::Device::give_back)
    GiveBack = "give the frame back";
    /// [`Device::set_meta`](crate::Device::set_meta)
    SetMeta = "set the buffer's metadata";
    /// [`Device::get_meta`](crate::Device::get_meta)
    GetMeta = "get the buffer's metadata";
    /// [`Device::quiesce`](crate::Device::quiesce)
    Quiesce = "quiesce the buffer";
    /// [`Device::resume`](crate::Device::resume)
    Resume = "resume the buffer";
    /// [`Device::next_event`](crate::Device::next_event)
    NextEvent = "read an event";
    /// [`Export::has_ended`](crate::Export::has_ended)
    HasEnded = "see whether the export has ended";
    /// [`DmaBuf::from_fd`](crate::DmaBuf::from_fd)
    Size = "determine the size of the buffer";
    /// [`DmaBuf::try_clone`](crate::DmaBuf::try_clone)
    Duplicate = "duplicate the descriptor";
    /// [`DmaBuf::map`](crate::DmaBuf::map)
    Map = "map the buffer";
    /// [`Mapping::begin`](crate::Mapping::begin)
    Begin = "begin CPU access";
    /// [`CpuAccess::read_at`](crate::CpuAccess::read_at), its checked form and
    /// [`chunks`](crate::CpuAccess::chunks)
    Read = "read from the buffer";
    /// [`CpuAccess::write_at`](crate::CpuAccess::write_at) and its checked form
    Write = "write to the buffer";
    /// [`CpuAccess::fill`](crate::CpuAccess::fill)
    Fill = "fill the buffer";
    /// [`CpuAccess::finish`](crate::CpuAccess::finish)
    End = "end CPU access";
}
