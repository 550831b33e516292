//! The harness itself: a watchdog that does not bite, or a report that hides what happened, would make every other test
//! worthless.

use std::process::ExitCode;
use std::time::Instant;

use integration_tests::harness::{Verdict, run_trial};
use integration_tests::{Row, Suite, millis, rows, seconds};

const ROWS: &[Row<fn()>] = rows![
    hang_is_a_failure_and_is_killed,
    panic_is_a_failure_with_its_output,
    exit_is_a_failure_with_its_code,
    forgotten_child_is_killed_and_does_not_hold_up_the_run,
    unknown_trial_is_a_failure,
];

const PROGRAMS: &[Row<fn()>] = rows![program_hangs, program_panics, program_exits, program_forgets_a_child];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("harness").tests(ROWS).programs(PROGRAMS).run()
}

fn failure_of(program: &str) -> String {
    match run_trial(program, millis(2_000), false) {
        Verdict::Passed => panic!("{program} passed"),
        Verdict::Failed(report) => report,
    }
}

fn program_hangs() {
    println!("about to hang");
    loop {
        std::thread::park();
    }
}

fn hang_is_a_failure_and_is_killed() {
    let start = Instant::now();
    let report = failure_of("program_hangs");
    assert!(report.contains("hung") && report.contains("about to hang"), "{report}");
    assert!(start.elapsed() >= millis(2_000) && start.elapsed() < seconds(10));
}

fn program_panics() {
    println!("about to panic");
    panic!("on purpose");
}

fn panic_is_a_failure_with_its_output() {
    let report = failure_of("program_panics");
    assert!(report.contains("panicked") && report.contains("about to panic"), "{report}");
    assert!(report.contains("on purpose") && report.contains("harness.rs"), "{report}");
}

fn program_exits() {
    std::process::exit(3);
}

fn exit_is_a_failure_with_its_code() {
    assert!(failure_of("program_exits").contains("exited with code 3"));
}

#[expect(clippy::zombie_processes, reason = "leaving it behind is the point")]
fn program_forgets_a_child() {
    let child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    println!("pid {}", child.id());
    panic!("leaves its child behind");
}

fn forgotten_child_is_killed_and_does_not_hold_up_the_run() {
    let start = Instant::now();
    let report = failure_of("program_forgets_a_child");
    assert!(start.elapsed() < seconds(2), "{:?}", start.elapsed());
    let line = report.lines().find_map(|line| line.strip_prefix("pid ")).expect("the pid of the child");
    let pid = rustix::process::Pid::from_raw(line.parse().unwrap()).unwrap();
    let gone = || {
        // Whoever adopted it may not have reaped it yet.
        rustix::process::test_kill_process(pid).is_err()
            || std::fs::read_to_string(format!("/proc/{line}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    };
    assert!(integration_tests::eventually(seconds(5), gone));
}

fn unknown_trial_is_a_failure() {
    assert!(failure_of("no_such_program").contains("there is no trial"));
}
