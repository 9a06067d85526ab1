// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a test that fails says

use std::panic;

use anyhow::{Context as _, Result, ensure};
use bufshare_tests::report;

/// Of the `ensure` in [`is_even`].
const CHECK: u32 = line!() + 3;

fn is_even(number: u32) -> Result<()> {
    ensure!(number.is_multiple_of(2));
    Ok(())
}

#[test]
fn a_test_that_fails_says_in_which_line() {
    let call = line!() + 3;
    let failed = panic::catch_unwind(|| {
        report::run(|| {
            is_even(2).and_then(|()| is_even(3)).context("of three")?;
            Ok(())
        });
    });

    let panic = failed.unwrap_err();
    let said = panic.downcast_ref::<String>().unwrap();
    let place =
        format!("at tests/tests/failures.rs:{CHECK}, from tests/tests/failures.rs:{call}: ");
    let name = "failures.a_test_that_fails_says_in_which_line: ";
    let rest = said.strip_prefix(name).unwrap_or(said);
    assert!(
        rest.starts_with(&format!("{place}of three: ")),
        "no '{place}' (by cargo, or with RUST_LIB_BACKTRACE=1?) in: {said}"
    );
}
