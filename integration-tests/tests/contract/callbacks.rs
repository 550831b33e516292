//! Callbacks of tasks.

use std::sync::mpsc;

use integration_tests::tasks::{double, panic_with_literal, pass};
use integration_tests::{Board, ContractRow, Fixture, Waiting, millis, rows, within};
use polypool::{ExecutorExt, TaskError, TaskState};

pub(crate) const ROWS: &[ContractRow] = rows![
    p09_callback_sees_the_finished_task,
    callbacks_run_in_order_and_before_the_waiters,
    callback_that_panics_changes_nothing_else,
    callback_may_use_the_pool,
];

fn p09_callback_sees_the_finished_task(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let (sender, seen) = mpsc::channel();
    let report = |what: &'static str, future: &polypool::TaskFuture<u64>| {
        let (sender, handle) = (sender.clone(), future.handle());
        future.on_done(move |outcome| {
            let outcome = match outcome {
                Ok(value) => value.to_string(),
                Err(TaskError::Panicked(report)) => report.message.clone().unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            // Inside, the task is finished, and asking does not block.
            let state = within(millis(200), || handle.state());
            sender.send((what, outcome, state, handle.is_done(), handle.cancel())).unwrap();
        });
    };

    let busy = pool.submit(pass { gate: gate.clone(), value: 5 });
    gate.wait_for_arrivals(1);
    let failing = pool.submit(panic_with_literal {});
    let cancelled = pool.submit(double { n: 1 });
    report("value", &busy);
    report("failure", &failing);
    report("cancel", &cancelled);

    assert!(cancelled.cancel());
    assert_eq!(
        seen.try_recv().unwrap(),
        ("cancel", "the task was cancelled".to_owned(), TaskState::Cancelled, true, true),
        "called by the cancel itself"
    );
    gate.open();
    assert_eq!(seen.recv().unwrap(), ("value", "5".to_owned(), TaskState::Succeeded, true, false));
    assert_eq!(seen.recv().unwrap(), ("failure", "a literal".to_owned(), TaskState::Failed, true, false));
    assert_eq!(busy.wait().unwrap(), 5, "the callback did not take the value");
}

fn callbacks_run_in_order_and_before_the_waiters(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(1);
        let gate = board.gate("hold");
        let task = pool.submit(pass { gate: gate.clone(), value: 5 });
        gate.wait_for_arrivals(1);
        let (sender, seen) = mpsc::channel();
        for number in 0..5 {
            let sender = sender.clone();
            task.on_done(move |_| {
                sender.send((number, std::thread::current().id())).unwrap();
            });
        }
        gate.open();
        assert_eq!(waiting.outcome(task).unwrap(), 5);
        let calls: Vec<_> = seen.try_iter().collect();
        assert_eq!(calls.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(calls.iter().all(|(_, thread)| *thread == calls[0].1), "all on one thread");
        assert_ne!(calls[0].1, std::thread::current().id(), "and not on the waiter's");
    }
}

fn callback_that_panics_changes_nothing_else(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let task = pool.submit(pass { gate: gate.clone(), value: 5 });
    let (sender, seen) = mpsc::channel();
    task.on_done(|_| panic!("a callback"));
    task.on_done(move |outcome| sender.send(*outcome.as_ref().unwrap()).unwrap());
    gate.open();
    assert_eq!(task.wait().unwrap(), 5);
    assert_eq!(seen.try_recv(), Ok(5));
    assert_eq!(pool.submit(double { n: 2 }).wait().unwrap(), 4, "the pool goes on");
}

fn callback_may_use_the_pool(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let task = pool.submit(pass { gate: gate.clone(), value: 5 });
    let (sender, next) = mpsc::channel();
    let inner = pool.clone();
    task.on_done(move |outcome| {
        let n = *outcome.as_ref().unwrap();
        let _ = inner.stats();
        sender.send(inner.submit(double { n })).unwrap();
    });
    gate.open();
    assert_eq!(next.recv().unwrap().wait().unwrap(), 10);
    drop(task);
}
