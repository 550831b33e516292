//! Faults on purpose: workers killed at random, what breaks other pools, and pools opened and closed by the hundred.
//!
//! What other pools do in the cases named `peers_…` is told in `FAULTS.md`.

#[path = "../processes/common.rs"]
mod common;
mod peers;
mod storm;

use std::process::ExitCode;

use integration_tests::Suite;

fn main() -> ExitCode {
    polypool::init();
    Suite::new("faults").tests(storm::ROWS).tests(peers::ROWS).programs(peers::PROGRAMS).run()
}
