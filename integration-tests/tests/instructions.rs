//! What a task costs in instructions, counted by valgrind's callgrind on all threads: the same on a busy machine as on a
//! quiet one, so that this can be a budget where times can't.
//!
//! The build of the tests is counted as it is, without optimisations, because another one would take minutes. So the
//! number is several times that of a release build and says nothing about speed; but work that is added to each task (a
//! lock, a copy, an allocation) shows in it. A change that is worth more instructions here sets a new budget.
//!
//! Without valgrind nothing is tested, and a line says so.

use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;

use integration_tests::{Row, Suite, rows};
use polypool::{TaskFuture, ThreadPool};

/// For a task from its submit to its collected result. It was 8,860 when this was written; a quarter is for other versions
/// of the compiler and of the standard library.
const BUDGET: u64 = 11_100;

const TESTS: &[Row<fn()>] = rows![a_task_on_threads_stays_within_its_budget];
const PROGRAMS: &[Row<fn()>] = rows![some_tasks, twice_as_many_tasks];

fn main() -> ExitCode {
    polypool::init();
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let tests = if valgrind.is_ok_and(|status| status.success()) {
        TESTS
    } else {
        println!("instructions: not counted, because there is no valgrind");
        &[]
    };
    Suite::new("instructions").tests(tests).programs(PROGRAMS).run()
}

const TASKS: usize = 5_000;

fn a_task_on_threads_stays_within_its_budget() {
    // What else the program does is in both numbers.
    let [some, twice_as_many] = ["some_tasks", "twice_as_many_tasks"].map(instructions);
    let each = twice_as_many.saturating_sub(some) / TASKS as u64;
    println!("{each} instructions for a task, of a budget of {BUDGET}");
    assert!(each > 0, "nothing was counted: {some} and {twice_as_many}");
    assert!(each <= BUDGET, "{each} instructions for a task: the budget is {BUDGET}");
}

fn some_tasks() {
    submit_and_collect(TASKS);
}

fn twice_as_many_tasks() {
    submit_and_collect(2 * TASKS);
}

/// The worker is held until all tasks are submitted, and has run all of them when they are collected: so neither side
/// waits for the other for each task, which would take as many instructions as it likes.
fn submit_and_collect(tasks: usize) {
    let pool = ThreadPool::builder().workers(1).build().unwrap();
    let (open, gate) = mpsc::channel();
    let held = pool.spawn(move || gate.recv());
    let mut pending: Vec<TaskFuture<()>> = Vec::with_capacity(tasks);
    pending.extend((0..tasks).map(|_| pool.spawn(|| ())));
    let last = pool.spawn(|| ());
    open.send(()).unwrap();
    last.wait().unwrap();
    held.wait().unwrap().unwrap();
    pending.into_iter().for_each(|task| task.wait().unwrap());
}

/// How many instructions a program of this executable takes.
fn instructions(program: &str) -> u64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe().unwrap()).args(["--trial", program]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {report}");
    let collected = report.lines().find_map(|line| line.split_once("Collected :"));
    let (_, number) = collected.unwrap_or_else(|| panic!("valgrind counted nothing: {report}"));
    number.trim().parse().unwrap()
}
