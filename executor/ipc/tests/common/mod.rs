//! A test harness for what needs a process of its own with a single thread: every test runs in a fresh process of this
//! very binary, and a watchdog outside kills it, with all that it started, when it takes too long.

use std::env;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// The name of a test and its body.
pub(crate) type Test = (&'static str, fn());

/// In a process that a test starts from its own binary: which part it plays there. See [`again`].
const PART: &str = "POLYPOOL_IPC_TEST_PART";
const TEST: &str = "POLYPOOL_IPC_TEST";
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the tests, each in its process, and prints what cargo's own harness prints. `parts` are what tests start by
/// [`again`].
pub(crate) fn main(tests: &[Test], parts: &[Test]) -> ExitCode {
    for (variable, table) in [(PART, parts), (TEST, tests)] {
        if let Ok(name) = env::var(variable) {
            let (_, body) = table.iter().find(|(n, _)| *n == name).expect("no such test");
            body();
            return ExitCode::SUCCESS;
        }
    }

    let args: Vec<String> = env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(&***f));

    let (mut passed, mut failed, mut out) = (0, 0, 0);
    println!("\nrunning {} tests", tests.iter().filter(|(n, _)| chosen(n)).count());
    for (name, _) in tests {
        if !chosen(name) {
            out += 1;
        } else if run(name) {
            passed += 1;
        } else {
            failed += 1;
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out\n");
    ExitCode::from(u8::from(failed != 0))
}

/// This binary once more, to play `part`.
#[allow(dead_code)] // not every test needs a second process
pub(crate) fn again(part: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env_remove(TEST).env(PART, part);
    command
}

fn run(name: &str) -> bool {
    print!("test {name} ... ");
    std::io::stdout().flush().unwrap();
    let mut child = Command::new(env::current_exe().unwrap()).env(TEST, name).process_group(0).spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() > LIMIT {
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    // Whatever the test has left behind goes too.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
    match status {
        Some(status) if status.success() => println!("ok"),
        Some(status) => println!("FAILED ({status})"),
        None => println!("FAILED (still running after {LIMIT:?})"),
    }
    status.is_some_and(|status| status.success())
}
