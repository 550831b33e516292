//! Code before `main`, in a test binary that forbids `unsafe` and belongs to the ordinary test harness.
#![cfg(unix)]
#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, exit};
use std::thread;

const PART: &str = "POLYPOOL_IPC_TEST_HOOK";

mod worker {
    pub(crate) fn hook() {
        super::hook();
    }
}

polypool_ipc::before_main!(worker::hook);
// More than one is fine.
polypool_ipc::before_main!(second_hook);

fn second_hook() {}

fn hook() {
    let Ok(part) = env::var(PART) else { return };
    match &*part {
        "work" => {
            // What a worker does: its work on a thread of its own.
            let sum = thread::spawn(|| (1..=10).sum::<i32>()).join().unwrap();
            println!("worked: {sum}");
            exit(3);
        }
        "panic" => panic!("no luck"),
        "broken pipe" | "broken pipe ignored" => {
            if part == "broken pipe ignored" {
                polypool_ipc::ignore_sigpipe();
            }
            let (reader, mut writer) = io::pipe().unwrap();
            drop(reader);
            let error = writer.write_all(b"x").unwrap_err();
            exit(i32::from(error.kind() != io::ErrorKind::BrokenPipe));
        }
        _ => exit(99),
    }
}

fn run(part: &str) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(PART, part).output().unwrap()
}

#[test]
fn the_hook_takes_over_before_the_harness() {
    let output = run("work");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(output.stdout, b"worked: 55\n", "no test ran");
}

#[test]
fn a_panic_ends_the_process_with_a_message() {
    let output = run("panic");
    assert_eq!(output.status.signal(), Some(6), "{output:?}");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("no luck") && message.contains("before_main!"), "{message}");
}

/// std has not yet done it at this point, which is why a worker must.
#[test]
fn sigpipe_is_deadly_before_main_unless_ignored() {
    assert_eq!(run("broken pipe").status.signal(), Some(13));
    assert_eq!(run("broken pipe ignored").status.code(), Some(0));
}
