//! `cargo bench -p polypool-ipc`: what processes share here, against Python's `multiprocessing` and against the bare
//! machine.
//!
//! ```text
//! cargo bench -p polypool-ipc                        all rows, two to three minutes
//! cargo bench -p polypool-ipc -- --quick             half a minute, with wider spread
//! cargo bench -p polypool-ipc -- --row value-two     one row; again for more
//! cargo bench -p polypool-ipc -- --json FILE         every round of every contestant as well
//! ```
//!
//! Each row ([`rows`]) is one operation, done by up to three contestants: ours ([`ours`]), Python's (`python_peer.py`,
//! if there is a `python3`) and the limit ([`limits`]), the least that a Rust program without this crate's promises
//! would do for it. They are measured in the same run, in turns, round by round ([`runner`]), since a machine's speed
//! changes from minute to minute; what counts is the ratio.
//!
//! Each contestant is a process of its own ([`part`]), which starts further ones as it needs them ([`helper`]), so none
//! can spoil or hang another one's rounds. Those of the manager, which stands above this crate, are played by another
//! program, `integration-tests/src/bin/manager_bench.rs`; it is built when it is needed.
//!
//! Speed is not a test: the exit code is 0, met or missed, as long as the rows could be measured. Without `--bench`, as
//! `cargo test --benches` calls it, every part is run once, briefly, without Python, to see that it works.

#[cfg(any(target_os = "linux", target_os = "android"))]
mod bare;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod helper;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod limits;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod ours;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod part;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod report;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod rows;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod runner;

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> std::process::ExitCode {
    if let Some(name) = part::mine() {
        let played = part::compete(&name, limits::CONTESTANTS)
            .or_else(|| part::compete(&name, ours::CONTESTANTS))
            .or_else(|| helper::help(&name, limits::HELPS))
            .or_else(|| helper::help(&name, ours::HELPS));
        part::finish(&name, played.unwrap_or_else(|| Err(std::io::Error::other("there is no such part"))));
    }
    match runner::Options::from_args(std::env::args().skip(1)).and_then(|options| runner::run(&options)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("shared_state: {text}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() {
    println!("shared state between processes is there on Linux only; nothing to measure");
}
