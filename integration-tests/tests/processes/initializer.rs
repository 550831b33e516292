//! The initialiser in worker processes, and workers that never get as far as their first task.

use std::sync::atomic::{AtomicU32, Ordering};

use integration_tests::tasks::double;
use integration_tests::{Board, Row, Traces, eventually, seconds};
use polypool::{BuildError, ExecutorExt, ProcessPool, Shutdown, StartMethod, SubmitError, TaskError};
use rustix::process::Signal;

use crate::both;
use crate::common::{Death, Fault, Faulty, builder, die, ends_clean, pid, pids, signal, soon, spin};

pub(crate) const ROWS: &[Row<fn()>] = both![
    p43_initializer_runs_once_in_each_process,
    p44_initializer_that_returns_an_error_breaks_the_pool,
    p44_initializer_that_panics_breaks_the_pool,
    p44_initializer_that_dies_breaks_the_pool,
    p44_initializer_that_cannot_be_decoded_breaks_the_pool,
    initializer_that_cannot_be_encoded_is_refused,
    initializer_that_hangs_does_not_stop_the_shutdown,
    initializer_that_fails_later_breaks_the_pool,
];

static EFFECT: AtomicU32 = AtomicU32::new(0);

#[polypool::task]
fn prepare(traces: Traces) -> Result<(), String> {
    EFFECT.fetch_add(1, Ordering::SeqCst);
    traces.leave(std::process::id().to_string());
    Ok(())
}

/// How often the initialiser has run in this process, and which it is.
#[polypool::task]
fn effect() -> (u32, u32) {
    (EFFECT.load(Ordering::SeqCst), std::process::id())
}

fn p43_initializer_runs_once_in_each_process(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 2).initializer(prepare { traces: board.traces() }).build().unwrap();
    assert_eq!(board.traces().count(), 0, "no worker before the first task");
    for round in 1..=3 {
        let (times, first) = soon(pool.submit(effect {})).unwrap();
        assert_eq!(times, 1);
        // Its successor is made ready as well.
        signal(first, Signal::KILL);
        assert!(eventually(seconds(5), || !pids(&pool).contains(&first)), "round {round}");
    }
    let traces = board.traces().all();
    let mut processes = traces.clone();
    processes.dedup();
    assert_eq!((traces.len(), processes.len()), (3, 3), "{traces:?}");
    assert_eq!(EFFECT.load(Ordering::SeqCst), 0, "not in this process");
}

/// The reason that a pool is broken for.
#[track_caller]
fn reason(pool: &ProcessPool) -> String {
    let pending: Vec<_> = (0..5).map(|n| pool.submit(double { n })).collect();
    let mut reason = String::new();
    for task in pending {
        match soon(task) {
            Err(TaskError::Rejected(SubmitError::Broken(why))) => reason = why.to_string(),
            other => panic!("it should be broken, not {other:?}"),
        }
    }
    for error in [
        soon(pool.submit(double { n: 1 })).unwrap_err(),
        TaskError::Rejected(pool.try_submit(double { n: 1 }).unwrap_err().error),
    ] {
        assert!(matches!(&error, TaskError::Rejected(SubmitError::Broken(why)) if **why == *reason), "{error:?}");
        assert!(error.to_string().contains(&reason), "the reason is in the text");
    }
    ends_clean(pool, Shutdown::Drain);
    reason
}

#[polypool::task]
fn fail() -> Result<(), String> {
    Err("no licence".to_owned())
}

#[polypool::task]
fn fail_by_panic() {
    panic!("no graphics card");
}

#[polypool::task]
fn fail_by_death(how: Death) {
    eprintln!("bad library");
    die(how);
}

#[polypool::task]
fn fail_by_decoding(value: Faulty) {
    let _ = value.fault;
}

fn p44_initializer_that_returns_an_error_breaks_the_pool(method: StartMethod) {
    let reason = reason(&builder(method, 2).initializer(fail {}).build().unwrap());
    assert!(reason.contains("initialiser") && reason.contains("no licence"), "{reason}");
}

fn p44_initializer_that_panics_breaks_the_pool(method: StartMethod) {
    let reason = reason(&builder(method, 2).initializer(fail_by_panic {}).build().unwrap());
    assert!(reason.contains("no graphics card") && reason.contains("initializer.rs"), "{reason}");
}

fn p44_initializer_that_dies_breaks_the_pool(method: StartMethod) {
    for (how, words) in [(Death::Exit(9), "exited with code 9"), (Death::Kill, "killed by signal 9")] {
        let reason = reason(&builder(method, 2).initializer(fail_by_death { how }).build().unwrap());
        assert!(reason.contains("initialiser") && reason.contains(words), "{reason}");
        assert!(reason.contains("bad library"), "its last words: {reason}");
    }
}

fn p44_initializer_that_cannot_be_decoded_breaks_the_pool(method: StartMethod) {
    let initializer = fail_by_decoding { value: Faulty::new(Fault::Decode) };
    let reason = reason(&builder(method, 2).initializer(initializer).build().unwrap());
    assert!(reason.contains("it won't be unpacked"), "{reason}");
}

fn initializer_that_cannot_be_encoded_is_refused(method: StartMethod) {
    let initializer = fail_by_decoding { value: Faulty::new(Fault::Encode) };
    match builder(method, 2).initializer(initializer).build() {
        Err(error @ BuildError::Initializer(_)) => {
            assert!(error.to_string().contains("it won't be packed"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn initializer_that_hangs_does_not_stop_the_shutdown(method: StartMethod) {
    let board = Board::new();
    let gate = board.gate("started");
    let pool = builder(method, 1).initializer(spin { gate: gate.clone() }).build().unwrap();
    let task = pool.submit(pid {});
    gate.wait_for_arrivals(1);
    ends_clean(&pool, Shutdown::CancelQueued);
    assert!(soon(task).unwrap_err().is_cancelled());
}

/// Fails in every process but the first.
#[polypool::task]
fn fail_later(traces: Traces) -> Result<(), String> {
    traces.leave("ran");
    if traces.count() > 1 { Err("out of seats".to_owned()) } else { Ok(()) }
}

fn initializer_that_fails_later_breaks_the_pool(method: StartMethod) {
    let board = Board::new();
    let pool = builder(method, 1).initializer(fail_later { traces: board.traces() }).build().unwrap();
    let first = soon(pool.submit(pid {})).unwrap();
    signal(first, Signal::KILL);
    assert!(eventually(seconds(5), || !pids(&pool).contains(&first)));
    let reason = reason(&pool);
    assert!(reason.contains("out of seats"), "{reason}");
}
