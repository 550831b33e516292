//! What only a process pool has: workers that die, codecs that refuse, a border that is crossed.
//!
//! Each test runs for both ways to start a worker, as `spawn::test` and `forkserver::test`, unless it is about one.

mod border;
mod callbacks;
mod child;
mod command;
mod common;
mod crash;
mod direct;
mod handles;
mod hardening;
mod hostile;
mod initializer;
mod orphans;
mod prefetch;
mod shutdown;
mod start;
mod stop;
mod transport;
mod workers;

use std::process::ExitCode;

use integration_tests::Suite;

fn main() -> ExitCode {
    polypool::init();
    Suite::new("processes")
        .tests(crash::ROWS)
        .tests(border::ROWS)
        .tests(handles::ROWS)
        .tests(handles::ONCE)
        .tests(stop::ROWS)
        .tests(shutdown::ROWS)
        .tests(workers::ROWS)
        .tests(initializer::ROWS)
        .tests(start::ROWS)
        .tests(start::ONCE)
        .tests(prefetch::ROWS)
        .tests(callbacks::ROWS)
        .tests(orphans::ROWS)
        .tests(direct::ROWS)
        .tests(transport::ROWS)
        .tests(transport::ONCE)
        .tests(hostile::ONCE)
        .tests(hardening::ROWS)
        .tests(child::ONCE)
        .tests(command::ONCE)
        .programs(orphans::PROGRAMS)
        .programs(child::PROGRAMS)
        .run()
}
