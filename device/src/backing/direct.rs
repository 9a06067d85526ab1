// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! *direct*: the RAM file of the exporter itself, one mapping per
//! extent.
//!
//! The descriptor gives the importer's VMM, not its guest, all of the
//! exporter's RAM. It is used only where the operator allows that.

use bufshare_protocol::types::Extent;

use super::{Error, FdPiece, PAGE, Ram};

/// One piece per extent.
///
/// # Errors
/// [`Error`] if an extent is not RAM any more or cannot be mapped as it lies.
pub fn pieces(ram: &Ram, extents: &[Extent], shm_offset: u64) -> Result<Vec<FdPiece>, Error> {
    let mut next = shm_offset;
    let mut pieces = Vec::with_capacity(extents.len());
    for extent in extents {
        let (region, fd_offset) = ram.locate(extent)?;
        let end = fd_offset.checked_add(extent.len).ok_or(Error::Overflow)?;
        if end > region.file.metadata()?.len() {
            return Err(Error::Short);
        }
        let aligned = fd_offset.is_multiple_of(region.page)
            && extent.len.is_multiple_of(region.page)
            && next.is_multiple_of(PAGE);
        if extent.len == 0 || !aligned {
            return Err(Error::Unaligned {
                offset: fd_offset,
                len: extent.len,
                page: region.page,
            });
        }
        pieces.push(FdPiece {
            file: region.file.clone(),
            id: region.id,
            fd_offset,
            len: extent.len,
            shm_offset: next,
        });
        next = next.checked_add(extent.len).ok_or(Error::Overflow)?;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::super::tests::ram;
    use super::*;

    #[test]
    fn pieces_lie_back_to_back_and_point_into_the_file() {
        let extents = [
            Extent {
                addr: 0x10_1000,
                len: 0x2000,
            },
            Extent {
                addr: 0x10000,
                len: 0x1000,
            },
        ];

        let pieces = pieces(&ram(), &extents, 0x7000).unwrap();

        let got: Vec<_> = pieces
            .iter()
            .map(|p| (p.fd_offset, p.len, p.shm_offset))
            .collect();
        assert_eq!(got, [(0x21000, 0x2000, 0x7000), (0x8000, 0x1000, 0x9000)]);
    }

    #[test]
    fn pieces_outside_ram_are_refused() {
        let extents = [Extent {
            addr: 0x1f000,
            len: 0x2000,
        }];

        assert!(matches!(
            pieces(&ram(), &extents, 0),
            Err(Error::NotRam { .. })
        ));
    }

    #[test]
    fn pieces_of_half_a_page_are_refused() {
        let extents = [Extent {
            addr: 0x10800,
            len: 0x1000,
        }];

        assert!(matches!(
            pieces(&ram(), &extents, 0),
            Err(Error::Unaligned { .. })
        ));
    }

    #[test]
    fn pieces_beyond_a_truncated_file_are_refused() {
        let file = super::super::tests::memfd(0x1000, false);
        let ram = Ram {
            regions: vec![super::super::Region::new(0, 0x2000, file, 0).unwrap()],
        };
        let extents = [Extent {
            addr: 0,
            len: 0x2000,
        }];

        assert!(matches!(pieces(&ram, &extents, 0), Err(Error::Short)));
    }
}
