//! The cases that break other process pools, one by one.

use std::process::{Command, Stdio};

use integration_tests::tasks::{double, panic_with_text, pass};
use integration_tests::{Board, Gate, Row, eventually, rows, seconds, within};
use polypool::{CodecError, Executor, ExecutorExt, Shutdown, StartMethod, SubmitError, TaskError, WorkerExit};
use rustix::process::Signal;

use crate::both;
use crate::common::{
    Death, Fault, Faulty, builder, descriptors_and_threads, die, ends_clean, fail_with_faulty, goes_on, lost, others,
    pass_and_die, pid, pids, pool, settled_descriptors_and_threads, signal, soon, spin, take_faulty,
};

pub(crate) const ROWS: &[Row<fn()>] = both![
    peers_one_worker_killed_under_100_tasks,
    peers_dead_idle_worker,
    peers_error_value_that_cannot_be_decoded,
    peers_argument_that_cannot_be_decoded,
    peers_exit_3,
    peers_parent_killed,
    peers_handles_that_nobody_joins_do_not_stall,
    peers_20_panics_keep_20_messages,
    peers_child_that_dies_before_init_does_not_hang_the_constructor,
    peers_exit_status_is_reported,
];

pub(crate) const PROGRAMS: &[Row<fn()>] = rows![parent];

fn peers_one_worker_killed_under_100_tasks(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    let gate = board.gate("hold");
    let tasks: Vec<_> = (0..100).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(2);
    let victim = pids(&pool)[0];
    signal(victim, Signal::KILL);
    assert!(eventually(seconds(5), || !pids(&pool).contains(&victim)));
    gate.open();
    let mut failed = 0;
    for (value, task) in (0..).zip(tasks) {
        match soon(task) {
            Ok(returned) => assert_eq!(returned, value),
            Err(TaskError::WorkerLost(lost)) if lost.pid == victim => failed += 1,
            Err(error) => panic!("task {value}: {error}"),
        }
    }
    assert_eq!(failed, 1);
    goes_on(&pool);
    ends_clean(&pool, Shutdown::Drain);
}

fn peers_dead_idle_worker(method: StartMethod) {
    let pool = pool(method, 1);
    for _ in 0..10 {
        let idle = soon(pool.submit(pid {})).unwrap();
        signal(idle, Signal::KILL);
        assert_ne!(soon(pool.submit(pid {})).unwrap(), idle, "given to its successor");
    }
}

fn peers_error_value_that_cannot_be_decoded(method: StartMethod) {
    let pool = pool(method, 1);
    let before = soon(pool.submit(pid {})).unwrap();
    match soon(pool.submit(fail_with_faulty { fault: Fault::Decode })) {
        Err(TaskError::Codec(error)) => assert!(matches!(*error, CodecError::DecodeResult(_)), "{error:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
}

fn peers_argument_that_cannot_be_decoded(method: StartMethod) {
    let pool = pool(method, 1);
    let before = soon(pool.submit(pid {})).unwrap();
    match soon(pool.submit(take_faulty { value: Faulty::new(Fault::Decode) })) {
        Err(TaskError::Codec(error)) => assert!(error.to_string().contains("it won't be unpacked"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(soon(pool.submit(pid {})).unwrap(), before);
}

fn peers_exit_3(method: StartMethod) {
    let pool = pool(method, 2);
    let queued: Vec<_> = (0..20).map(|n| pool.submit(double { n })).collect();
    assert_eq!(lost(soon(pool.submit(die { how: Death::Exit(3) }))).exit, WorkerExit::Code(3));
    for (n, task) in (0..).zip(queued) {
        assert_eq!(soon(task).unwrap(), 2 * n);
    }
    goes_on(&pool);
}

/// A program whose two workers never end.
fn parent() {
    let gate: Gate = serde_json::from_str(&std::env::var("GATE").expect("a gate")).expect("a gate");
    let method = if std::env::var_os("FORK").is_some() { StartMethod::ForkServer } else { StartMethod::Spawn };
    let pool = pool(method, 2);
    for task in [0, 1].map(|_| pool.submit(spin { gate: gate.clone() })) {
        let _ = task.wait();
    }
}

fn peers_parent_killed(method: StartMethod) {
    let board = Board::new();
    let gate = board.gate("started");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--trial", "parent"]).env("GATE", serde_json::to_string(&gate).expect("plain data"));
    if method == StartMethod::ForkServer {
        command.env("FORK", "1");
    }
    let mut parent = command.stdin(Stdio::null()).spawn().expect("the program starts");
    gate.wait_for_arrivals(2);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let gone = eventually(seconds(2), || others().iter().all(|seen| seen.is_zombie()));
    assert!(gone, "left over: {:?}", others());
}

fn peers_handles_that_nobody_joins_do_not_stall(method: StartMethod) {
    let pool = pool(method, 1);
    let never_read: Vec<_> = (0..1_000).map(|n| pool.submit(double { n })).collect();
    (0..1_000).for_each(|n| pool.submit(double { n }).detach());
    goes_on(&pool);
    drop(never_read);
    ends_clean(&pool, Shutdown::Drain);
}

fn peers_20_panics_keep_20_messages(method: StartMethod) {
    let pool = pool(method, 2);
    let tasks: Vec<_> = (0..20).map(|n| pool.submit(panic_with_text { text: format!("number {n}") })).collect();
    for (n, task) in tasks.into_iter().enumerate() {
        match soon(task) {
            Err(TaskError::Panicked(report)) => {
                assert_eq!(report.message.as_deref(), Some(&*format!("said number {n}")));
                assert!(report.location.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pool.stats().workers_lost, 0);
}

fn peers_child_that_dies_before_init_does_not_hang_the_constructor(method: StartMethod) {
    let before = settled_descriptors_and_threads(method);
    let pool = within(seconds(1), || builder(method, 2).worker_executable("/bin/false").build()).unwrap();
    let error = soon(pool.submit(double { n: 1 })).unwrap_err();
    assert!(matches!(error, TaskError::Rejected(SubmitError::Broken(_))), "{error:?}");
    ends_clean(&pool, Shutdown::Drain);
    drop(pool);
    assert!(eventually(seconds(5), || descriptors_and_threads() == before));
}

fn peers_exit_status_is_reported(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    let gate = board.gate("open");
    gate.open();
    for how in [Death::Exit(42), Death::Kill, Death::Abort] {
        let lost = lost(soon(pool.submit(pass_and_die { gate: gate.clone(), how })));
        assert_eq!(lost.exit, how.exit());
    }
}
