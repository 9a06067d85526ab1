// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many buffers go round between a camera and those who view it, and how many frames one
//! machine may keep, so that machines which hang stop no others.

use crate::failure::{Failure, Result};

/// The most that a V4L2 queue has (`VIDEO_MAX_FRAME`). An access list has 16 machines at most, for
/// which that is enough.
pub(crate) const MAX_BUFFERS: u32 = 32;
/// One is filled while another is looked at.
pub(crate) const MIN_BUFFERS: u32 = 2;
/// What is taken where no more are needed.
const USUAL_BUFFERS: u32 = 4;
/// A screen shows a frame until it is given the next one.
const LEAST_HELD: u32 = 2;

/// Buffers that do for so many machines: all but one hang, with [`LEAST_HELD`] frames each; the
/// last one shows one, and one is filled.
fn enough(machines: u32) -> u32 {
    let hung = LEAST_HELD.saturating_mul(machines.saturating_sub(1));
    hung.saturating_add(MIN_BUFFERS).min(MAX_BUFFERS)
}

/// Buffers to ask the camera's driver for: as many as were typed, if they do for so many machines.
pub(crate) fn buffers(typed: Option<u32>, machines: usize) -> Result<u32> {
    let machines = u32::try_from(machines).unwrap_or(u32::MAX);
    let least = enough(machines);
    match typed {
        None => Ok(USUAL_BUFFERS.max(least)),
        Some(typed) if typed >= least => Ok(typed),
        Some(_) => Err(Failure::new(format!(
            "--buffers: for {machines} machines at least {least}, or one that hangs stops the \
             others"
        ))),
    }
}

/// Frames that a machine may have at once, of a stream of so many buffers; 0: all of them.
pub(crate) fn max_held(buffers: u32, machines: usize) -> u32 {
    let others = u32::try_from(machines).unwrap_or(u32::MAX);
    let others = others.saturating_sub(1);
    // A single machine gets each frame, and the camera waits for it.
    let share = buffers.saturating_sub(MIN_BUFFERS).checked_div(others);
    share.map_or(0, |share| share.max(LEAST_HELD))
}

/// What there is to warn of where the camera's driver gave so many buffers.
pub(crate) fn shortage(buffers: u32, machines: usize) -> Option<String> {
    let least = enough(u32::try_from(machines).unwrap_or(u32::MAX));
    (buffers < least).then(|| {
        format!(
            "the camera's driver takes {buffers} buffers, and {machines} machines need {least}: \
             one that hangs may stop the others"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Buffers that are not with machines which hang, or with the driver.
    fn left(buffers: u32, machines: usize) -> Option<u32> {
        let hung = u32::try_from(machines).ok()?.checked_sub(1)?;
        buffers.checked_sub(hung.checked_mul(max_held(buffers, machines))?)
    }

    #[test]
    fn a_screen_goes_on_whatever_the_other_machines_keep() {
        for machines in 2..=16 {
            for typed in (MIN_BUFFERS..=MAX_BUFFERS).map(Some).chain([None]) {
                let Ok(buffers) = buffers(typed, machines) else {
                    continue;
                };
                assert!(buffers <= MAX_BUFFERS, "{typed:?} for {machines}");
                // It is given the next frame while it keeps one.
                assert!(max_held(buffers, machines) >= 2);
                // That one, and the next.
                let left = left(buffers, machines);
                assert!(left >= Some(2), "{left:?} of {buffers} for {machines}");
                assert_eq!(shortage(buffers, machines), None);
            }
        }
    }

    #[test]
    fn buffers_are_as_many_as_were_typed_or_as_the_machines_need() {
        for (typed, machines, taken) in [
            (None, 1, Some(4)),
            (Some(2), 1, Some(2)),
            (None, 2, Some(4)),
            (Some(3), 2, None),
            (Some(8), 2, Some(8)),
            (None, 3, Some(6)),
            (Some(5), 3, None),
            (None, 16, Some(32)),
        ] {
            assert_eq!(buffers(typed, machines).ok(), taken, "{typed:?} {machines}");
        }
        let why = buffers(Some(2), 3).unwrap_err().to_string();
        assert!(
            why.starts_with("--buffers: for 3 machines at least 6"),
            "{why}"
        );
    }

    #[test]
    fn one_machine_may_keep_all_frames_and_several_share_what_there_is() {
        assert_eq!(max_held(4, 1), 0);
        assert_eq!(
            [max_held(4, 2), max_held(8, 2), max_held(32, 3)],
            [2, 6, 15]
        );
        // Which the driver alone can bring about.
        assert_eq!(max_held(2, 2), 2);
        let warning = shortage(3, 2).unwrap();
        assert!(
            warning.contains("takes 3 buffers, and 2 machines need 4"),
            "{warning}"
        );
        assert_eq!(shortage(2, 1), None);
    }
}
