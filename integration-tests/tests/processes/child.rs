//! A process as a handle: `Process`.

use std::process::{Command, Stdio};

use integration_tests::tasks::{add, double, panic_with_literal, pass, pass_and_leave};
use integration_tests::{Board, Gate, Row, eventually, millis, rows, seconds};
use polypool::{
    Process, ProcessPool, StartError, TaskError, TaskState, WorkerExit, active_children, current_process,
    join_children, parent_process,
};
use rustix::process::Signal;

use crate::common::{
    Death, Fault, Faulty, descriptors_and_threads, die, look, lost, no_process_is_left, others, pass_pid, pids, signal,
    soon, spin, spin_through_sigterm,
};

pub(crate) const ONCE: &[Row<fn()>] = rows![
    process_value_and_exit_code,
    process_failures_are_told_by_the_future_and_the_exit,
    process_terminate_and_kill,
    process_terminate_right_after_the_start_never_runs_twice,
    process_terminate_of_one_that_ignores_it,
    process_cancel_kills_it,
    process_join_with_a_timeout_ends_the_wait_only,
    process_knows_itself_and_its_parent,
    process_active_children_are_those_alive,
    process_join_children_ends_daemons_and_waits_for_the_others,
    process_without_handle_and_future_runs_to_its_end,
    process_that_can_not_be_started_is_an_error,
    process_leaves_nothing_behind,
    process_ends_with_a_killed_program,
];

pub(crate) const PROGRAMS: &[Row<fn()>] = rows![parent_of_a_process];

#[polypool::task]
fn who() -> (String, u32, Option<u32>) {
    (current_process().name().to_owned(), current_process().pid(), parent_process())
}

/// What a process that it starts says of itself.
#[polypool::task]
fn who_is_inside() -> (String, u32, Option<u32>) {
    let (process, inner) = Process::builder().name("inner").start(who {}).expect("a process in a process");
    let inner = inner.wait().expect("its value");
    process.join();
    inner
}

#[track_caller]
fn ended(process: &Process) -> WorkerExit {
    let exit = process.join_timeout(seconds(10)).expect("the process ends");
    assert!(!process.is_alive());
    assert_eq!(process.exit(), Some(exit.clone()));
    assert!(look(process.pid()).is_none(), "it has been reaped");
    exit
}

fn process_value_and_exit_code() {
    let (process, sum) = Process::start(add { a: 2, b: 3 }).expect("a process");
    assert_ne!(process.pid(), std::process::id());
    assert_eq!(process.name(), "add");
    assert_eq!(soon(sum).expect("a value"), 5);
    assert_eq!(ended(&process), WorkerExit::Code(0));
    assert_eq!((process.exit_code(), process.exit_signal()), (Some(0), None));
    assert_eq!(process.join(), WorkerExit::Code(0));
    assert_eq!(futures_ext::block_on(process.ended()), WorkerExit::Code(0));
    no_process_is_left(seconds(0));
}

fn process_failures_are_told_by_the_future_and_the_exit() {
    let (process, outcome) = Process::start(panic_with_literal {}).expect("a process");
    assert!(matches!(soon(outcome), Err(TaskError::Panicked(_))));
    assert_eq!(ended(&process), WorkerExit::Code(0));
    for how in [Death::Exit(3), Death::Exit(0), Death::Abort, Death::Kill] {
        let (process, outcome) = Process::start(die { how }).expect("a process");
        let lost = lost(soon(outcome));
        assert_eq!((&lost.exit, lost.pid), (&how.exit(), process.pid()));
        assert_eq!(ended(&process), how.exit());
    }
}

fn process_terminate_and_kill() {
    let board = Board::new();
    for (number, end) in [(15, Process::terminate as fn(&Process)), (9, Process::kill)] {
        let gate = board.gate(&number.to_string());
        let (process, outcome) = Process::start(spin { gate: gate.clone() }).expect("a process");
        gate.wait_for_arrivals(1);
        assert!(process.is_alive() && process.exit().is_none());
        end(&process);
        assert_eq!(ended(&process), WorkerExit::Signal(number));
        assert_eq!((process.exit_code(), process.exit_signal()), (None, Some(number)));
        assert_eq!(lost(soon(outcome)).exit, WorkerExit::Signal(number));
        // No effect on one that has ended, whose number may be somebody else's.
        end(&process);
    }
}

fn process_terminate_right_after_the_start_never_runs_twice() {
    let board = Board::new();
    let (gate, traces) = (board.gate("gate"), board.traces());
    for round in 0..20 {
        let task = pass_and_leave { gate: gate.clone(), traces: traces.clone(), text: round.to_string() };
        let (process, outcome) = Process::start(task).expect("a process");
        let pid = process.pid();
        std::thread::sleep(millis(round % 5));
        process.terminate();
        let exit = ended(&process);
        assert_eq!((exit, process.pid()), (WorkerExit::Signal(15), pid));
        let error = soon(outcome).unwrap_err();
        assert!(error.is_cancelled() || matches!(error, TaskError::WorkerLost(_)), "{error:?}");
    }
    gate.open();
    no_process_is_left(seconds(0));
    assert_eq!(traces.count(), 0);
}

fn process_terminate_of_one_that_ignores_it() {
    let board = Board::new();
    let gate = board.gate("gate");
    let (process, outcome) = Process::start(spin_through_sigterm { gate: gate.clone() }).expect("a process");
    gate.wait_for_arrivals(1);
    process.terminate();
    assert!(process.join_timeout(millis(200)).is_err());
    process.kill();
    assert_eq!(ended(&process), WorkerExit::Signal(9));
    lost(soon(outcome));
}

fn process_cancel_kills_it() {
    let board = Board::new();
    let gate = board.gate("gate");
    let (process, outcome) = Process::start(spin { gate: gate.clone() }).expect("a process");
    gate.wait_for_arrivals(1);
    assert!(outcome.cancel());
    assert!(soon(outcome).unwrap_err().is_cancelled());
    assert_eq!(ended(&process), WorkerExit::Signal(9));
}

fn process_join_with_a_timeout_ends_the_wait_only() {
    let board = Board::new();
    let gate = board.gate("gate");
    let (process, value) = Process::start(pass { gate: gate.clone(), value: 7 }).expect("a process");
    gate.wait_for_arrivals(1);
    assert!(process.join_timeout(millis(20)).is_err());
    assert!(process.is_alive());
    assert_eq!(value.state(), TaskState::Running);
    gate.open();
    assert_eq!(ended(&process), WorkerExit::Code(0));
    assert_eq!(soon(value).expect("a value"), 7);
}

fn process_knows_itself_and_its_parent() {
    let own = std::process::id();
    assert_eq!((current_process().name(), current_process().pid(), parent_process()), ("main", own, None));
    let (process, said) = Process::builder().name("a name").start(who {}).expect("a process");
    assert_eq!(soon(said).expect("a value"), ("a name".to_owned(), process.pid(), Some(own)));
    let (process, said) = Process::start(who_is_inside {}).expect("a process");
    let (name, pid, parent) = soon(said).expect("a value");
    assert_eq!((name.as_str(), parent), ("inner", Some(process.pid())));
    assert_ne!(pid, process.pid());
    // A worker of a pool can be asked, too.
    let pool = ProcessPool::builder().workers(1).name_prefix("pool").build().expect("a pool");
    let (name, pid, parent) = soon(polypool::ExecutorExt::submit(&pool, who {})).expect("a value");
    assert_eq!((name.as_str(), vec![pid], parent), ("pool-0", pids(&pool), Some(own)));
}

fn process_active_children_are_those_alive() {
    let board = Board::new();
    let gates: Vec<Gate> = ["a", "b"].iter().map(|name| board.gate(name)).collect();
    let started: Vec<_> =
        gates.iter().map(|gate| Process::start(pass_pid { gate: gate.clone() }).expect("a process")).collect();
    let alive = || active_children().iter().map(Process::pid).collect::<Vec<_>>();
    assert_eq!(alive(), [started[0].0.pid(), started[1].0.pid()]);
    gates[0].open();
    ended(&started[0].0);
    assert_eq!(alive(), [started[1].0.pid()]);
    gates[1].open();
    ended(&started[1].0);
    assert!(alive().is_empty());
}

fn process_join_children_ends_daemons_and_waits_for_the_others() {
    let board = Board::new();
    let (gate, spinning) = (board.gate("gate"), board.gate("spinning"));
    let (daemon, _) = Process::builder().daemon(true).start(spin { gate: spinning.clone() }).expect("a process");
    let (other, value) = Process::start(pass { gate: gate.clone(), value: 1 }).expect("a process");
    assert!(daemon.is_daemon() && !other.is_daemon());
    spinning.wait_for_arrivals(1);
    gate.wait_for_arrivals(1);
    let joining = std::thread::spawn(join_children);
    assert_eq!(ended(&daemon), WorkerExit::Signal(15));
    assert!(!joining.is_finished() && other.is_alive());
    gate.open();
    joining.join().expect("it waits and ends");
    assert_eq!(other.exit_code(), Some(0));
    assert_eq!(soon(value).expect("a value"), 1);
}

fn process_without_handle_and_future_runs_to_its_end() {
    let board = Board::new();
    let (gate, traces) = (board.gate("gate"), board.traces());
    let task = pass_and_leave { gate: gate.clone(), traces: traces.clone(), text: "ran".to_owned() };
    drop(Process::start(task).expect("a process"));
    gate.wait_for_arrivals(1);
    gate.open();
    assert_eq!(traces.wait_for(1), ["ran"]);
    no_process_is_left(seconds(5));
}

#[polypool::task]
fn take(what: Faulty) {
    let _ = what;
}

fn process_that_can_not_be_started_is_an_error() {
    let error = Process::start(take { what: Faulty::new(Fault::Encode) }).unwrap_err();
    assert!(matches!(error, StartError::Task(TaskError::Codec(_))), "{error:?}");
    let error = Process::builder().name("nul\0").start(double { n: 1 }).unwrap_err();
    assert!(matches!(error, StartError::Build(_)), "{error:?}");
    assert!(active_children().is_empty());
    no_process_is_left(seconds(0));
}

fn process_leaves_nothing_behind() {
    let one = || {
        let (process, value) = Process::start(double { n: 4 }).expect("a process");
        assert_eq!(soon(value).expect("a value"), 8);
        ended(&process);
    };
    one();
    assert!(active_children().is_empty());
    assert!(eventually(seconds(5), || others().is_empty()));
    let mut before = descriptors_and_threads();
    assert!(eventually(seconds(5), || {
        let now = descriptors_and_threads();
        std::mem::replace(&mut before, now) == now
    }));
    for _ in 0..20 {
        one();
    }
    assert!(active_children().is_empty());
    let left = || descriptors_and_threads();
    assert!(eventually(seconds(5), || left() <= before), "{:?} and not {before:?}", left());
    no_process_is_left(seconds(0));
}

/// A program with a process that never ends.
fn parent_of_a_process() {
    let gate: Gate = serde_json::from_str(&std::env::var("GATE").expect("a gate")).expect("a gate");
    let started = Process::start(spin_through_sigterm { gate });
    let _ = std::io::Read::read_to_end(&mut std::io::stdin(), &mut Vec::new());
    std::mem::forget(started);
}

fn process_ends_with_a_killed_program() {
    let board = Board::new();
    let gate = board.gate("gate");
    let mut parent = Command::new(std::env::current_exe().expect("this program"))
        .args(["--trial", "parent_of_a_process"])
        .env("GATE", serde_json::to_string(&gate).expect("plain data"))
        .stdin(Stdio::piped())
        .spawn()
        .expect("the program starts");
    gate.wait_for_arrivals(1);
    assert_eq!(others().len(), 2, "{:?}", others());
    signal(parent.id(), Signal::KILL);
    parent.wait().expect("it has ended");
    let gone = eventually(seconds(2), || others().iter().all(|seen| seen.is_zombie()));
    assert!(gone, "left over: {:?}", others());
}
