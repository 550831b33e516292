//! Calls that are sent ahead to a worker before it asks for them: they stay in the pool's hands.

use std::cell::Cell;
use std::time::Instant;

use integration_tests::tasks::{leave, pass, pass_and_leave};
use integration_tests::{Board, Gate, Row, eventually, millis, seconds};
use polypool::{Executor, ExecutorExt, ProcessPool, Shutdown, StartMethod, Stats, TaskError, TaskFuture, TaskOptions};

use crate::both;
use crate::common::{Death, counted, ends_clean, goes_on, lost, pass_and_die, pool, soon, warm_up};

pub(crate) const ROWS: &[Row<fn()>] = both![
    cancelled_call_that_was_sent_ahead_never_runs,
    calls_sent_ahead_survive_their_worker,
    idle_worker_takes_over_what_is_stuck,
    new_worker_takes_over_what_is_stuck,
    deadline_of_a_call_that_was_sent_ahead,
    cancelling_shutdown_takes_back_what_was_sent_ahead,
    cancel_and_start_race_and_one_wins,
];

const AHEAD: usize = 20;

/// A worker that is held at a gate, with calls behind it of which some have been sent ahead.
struct Held<T> {
    board: Board,
    gate: Gate,
    /// What holds it.
    first: TaskFuture<T>,
    tasks: Vec<TaskFuture<()>>,
    /// What the statistics said before.
    before: Stats,
}

/// Whether calls are sent ahead depends on how long the worker took for its last ones, which on a machine that is very
/// busy may have been too long. So this is done until it has worked.
fn hold<T: Send + 'static>(
    pool: &ProcessPool,
    options: impl Fn() -> TaskOptions,
    first: impl Fn(Gate) -> TaskFuture<T>,
) -> Held<T> {
    for _ in 0..20 {
        warm_up(pool);
        let board = Board::new();
        let gate = board.gate("hold");
        let before = pool.stats();
        let first = first(gate.clone());
        gate.wait_for_arrivals(1);
        let options = options();
        let tasks = (0..AHEAD)
            .map(|n| pool.submit_with(leave { traces: board.traces(), text: n.to_string() }, options.clone()))
            .collect();
        if eventually(millis(500), || pool.stats().queued < AHEAD) {
            return Held { board, gate, first, tasks, before };
        }
        gate.open();
        let _ = soon(first);
        tasks.into_iter().for_each(|task: TaskFuture<()>| drop(soon(task)));
    }
    panic!("none was sent ahead: {:?}", pool.stats());
}

/// Each ran once.
#[track_caller]
fn all_ran_once(board: &Board) {
    let counts = counted(&board.traces());
    assert_eq!(counts.len(), AHEAD);
    assert!(counts.values().all(|&runs| runs == 1), "{counts:?}");
}

fn cancelled_call_that_was_sent_ahead_never_runs(method: StartMethod) {
    let pool = pool(method, 1);
    let Held { board, gate, first: busy, tasks, before } =
        hold(&pool, TaskOptions::new, |gate| pool.submit(pass { gate, value: 1 }));
    for task in tasks.iter().step_by(2) {
        assert!(task.cancel());
        assert!(task.is_done(), "at once");
    }
    gate.open();
    assert_eq!(soon(busy).unwrap(), 1);
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(soon(task).is_ok(), n % 2 == 1);
    }
    goes_on(&pool);
    let expected: Vec<_> = (0..AHEAD).filter(|n| n % 2 == 1).map(|n| n.to_string()).collect();
    assert_eq!(board.traces().all(), expected);
    assert_eq!(pool.stats().skipped - before.skipped, AHEAD as u64 / 2);
    assert_eq!(pool.stats().workers_lost, 0);
}

fn calls_sent_ahead_survive_their_worker(method: StartMethod) {
    let pool = pool(method, 1);
    let Held { board, gate, first: victim, tasks, before } =
        hold(&pool, TaskOptions::new, |gate| pool.submit(pass_and_die { gate, how: Death::Abort }));
    gate.open();
    lost(soon(victim));
    for task in tasks {
        soon(task).expect("given to another worker");
    }
    all_ran_once(&board);
    assert_eq!((pool.stats().retried, pool.stats().workers_lost), (0, before.workers_lost + 1));
}

fn idle_worker_takes_over_what_is_stuck(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    warm_up(&pool);
    let (long, short) = (board.gate("long"), board.gate("short"));
    let stuck = pool.submit(pass { gate: long.clone(), value: 1 });
    let brief = pool.submit(pass { gate: short.clone(), value: 2 });
    long.wait_for_arrivals(1);
    short.wait_for_arrivals(1);
    let tasks: Vec<_> =
        (0..AHEAD).map(|n| pool.submit(leave { traces: board.traces(), text: n.to_string() })).collect();
    // On a machine that is too busy none are sent ahead, and then there is less to take over.
    let _ = eventually(seconds(1), || pool.stats().queued < AHEAD);
    short.open();
    assert_eq!(soon(brief).unwrap(), 2);
    for task in tasks {
        soon(task).expect("although one worker is stuck");
    }
    all_ran_once(&board);
    assert!(!stuck.is_done());
    long.open();
    assert_eq!(soon(stuck).unwrap(), 1);
    ends_clean(&pool, Shutdown::Drain);
}

fn new_worker_takes_over_what_is_stuck(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 2);
    // One after another: a single worker, used to small tasks.
    for _ in 0..200 {
        goes_on(&pool);
    }
    assert_eq!(pool.stats().workers.len(), 1);
    let gate = board.gate("hold");
    let stuck = pool.submit(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let tasks: Vec<_> =
        (0..AHEAD).map(|n| pool.submit(leave { traces: board.traces(), text: n.to_string() })).collect();
    for task in tasks {
        soon(task).expect("a second worker comes");
    }
    all_ran_once(&board);
    gate.open();
    soon(stuck).unwrap();
}

fn deadline_of_a_call_that_was_sent_ahead(method: StartMethod) {
    let pool = pool(method, 1);
    let deadline = Cell::new(Instant::now());
    let options = || {
        // A second one for those that show whether any are sent.
        deadline.set(Instant::now() + millis(1_000));
        TaskOptions::new().deadline(deadline.get())
    };
    let Held { board, gate, first: busy, tasks, .. } =
        hold(&pool, options, |gate| pool.submit(pass { gate, value: 1 }));
    for task in tasks {
        assert!(matches!(soon(task), Err(TaskError::DeadlineExceeded)));
        assert!(Instant::now() >= deadline.get());
    }
    gate.open();
    assert_eq!(soon(busy).unwrap(), 1, "the one that runs is not hit");
    goes_on(&pool);
    assert_eq!(board.traces().count(), 0, "none of them ran");
    assert_eq!(pool.stats().workers_lost, 0);
}

fn cancelling_shutdown_takes_back_what_was_sent_ahead(method: StartMethod) {
    let pool = pool(method, 1);
    let Held { board, gate, first: busy, tasks, .. } =
        hold(&pool, TaskOptions::new, |gate| pool.submit(pass { gate, value: 1 }));
    let mut terminated = pool.shutdown(Shutdown::CancelQueued);
    for task in tasks {
        assert!(soon(task).unwrap_err().is_cancelled());
    }
    gate.open();
    assert_eq!(soon(busy).unwrap(), 1, "what runs is run to its end");
    terminated.wait_timeout(seconds(10)).unwrap();
    assert_eq!(board.traces().count(), 0);
}

fn cancel_and_start_race_and_one_wins(method: StartMethod) {
    let board = Board::new();
    let pool = pool(method, 1);
    for round in 0..30 {
        warm_up(&pool);
        let gate = board.gate(&format!("hold {round}"));
        let mut tasks: Vec<_> = (0..AHEAD)
            .map(|n| {
                let text = format!("{round} {n}");
                pool.submit(pass_and_leave { gate: gate.clone(), traces: board.traces(), text })
            })
            .collect();
        gate.wait_for_arrivals(1);
        gate.open();
        // Against the worker, which now goes through them from the front.
        let last = tasks.split_off(AHEAD / 2);
        let answers: Vec<bool> = last.iter().rev().map(TaskFuture::cancel).rev().collect();
        tasks.into_iter().for_each(|task| soon(task).unwrap());
        let outcomes: Vec<_> = last.into_iter().map(soon).collect();
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            assert_eq!(answer, outcome.is_err(), "{outcome:?}");
        }
    }
    let counts = counted(&board.traces());
    assert!(counts.values().all(|&runs| runs == 1), "{counts:?}");
    ends_clean(&pool, Shutdown::Drain);
}
