// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a camera's driver gave: frames, gaps between them, and buffers without a frame.

use bufshare_media::v4l2::Filled;

/// The books of one run.
#[derive(Default)]
pub(crate) struct Supply {
    last_sequence: Option<u32>,
    gaps: u64,
    broken: u64,
    /// Of these, those after the last buffer that held a frame.
    broken_in_a_row: u64,
}

impl Supply {
    /// The driver gave a buffer. Answers whether it holds a frame. Only that is progress:
    /// a camera that fills no buffer properly gives them as fast as any other.
    pub(crate) fn gave(&mut self, filled: &Filled) -> bool {
        if let Some(last) = self.last_sequence {
            let lost = filled.sequence.wrapping_sub(last).saturating_sub(1);
            self.gaps = self.gaps.saturating_add(u64::from(lost));
        }
        self.last_sequence = Some(filled.sequence);
        if filled.broken {
            self.broken = self.broken.saturating_add(1);
            self.broken_in_a_row = self.broken_in_a_row.saturating_add(1);
        } else {
            self.broken_in_a_row = 0;
        }
        !filled.broken
    }

    /// Frames that were lost for want of buffers.
    pub(crate) fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Buffers that the driver marked as broken, or of which it said what cannot be.
    pub(crate) fn broken(&self) -> u64 {
        self.broken
    }

    /// Why no frame came in so many seconds.
    pub(crate) fn lack(&self, seconds: f64) -> String {
        match self.broken_in_a_row {
            0 => format!("the camera gave no frame within {seconds} s"),
            broken => format!(
                "the camera gave no whole frame within {seconds} s: its driver marked the last \
                 {broken} as broken, or gave them with sizes that cannot be; are its cable, size \
                 and format right?"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(sequence: u32, broken: bool) -> Filled {
        Filled {
            index: 0,
            sequence,
            broken,
            time: None,
            time_is_start: false,
            field_order: None,
            planes: Vec::new(),
        }
    }

    #[test]
    fn what_a_driver_marks_as_broken_is_no_frame_and_says_why_none_came() {
        let mut supply = Supply::default();
        assert_eq!(supply.lack(2.5), "the camera gave no frame within 2.5 s");
        assert!(supply.gave(&filled(0, false)));
        assert!(!supply.gave(&filled(1, true)));
        assert!(!supply.gave(&filled(2, true)));
        assert_eq!(supply.broken(), 2);
        let lack = supply.lack(2.5);
        let why = "no whole frame within 2.5 s: its driver marked the last 2 as broken, or gave \
                   them with sizes that cannot be;";
        assert!(lack.contains(why), "{lack}");
        assert!(supply.gave(&filled(3, false)));
        assert_eq!(supply.lack(1.0), "the camera gave no frame within 1 s");
        assert_eq!((supply.broken(), supply.gaps()), (2, 0));
    }

    #[test]
    fn gaps_in_the_numbers_are_counted_over_their_end() {
        let mut supply = Supply::default();
        for sequence in [u32::MAX - 3, u32::MAX, 0, 2] {
            supply.gave(&filled(sequence, false));
        }
        assert_eq!(supply.gaps(), 3);
    }
}
