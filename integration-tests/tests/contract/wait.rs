//! `wait` over the tasks of a pool.

use std::time::Instant;

use futures_ext::{All, FirstCompleted, FirstFailure};
use futures_util::FutureExt as _;
use integration_tests::tasks::{double, panic_with_literal, pass};
use integration_tests::{Board, ContractRow, Fixture, Gate, Pool, Waiting, eventually, millis, rows, seconds, within};
use polypool::{ExecutorExt, TaskFuture};

pub(crate) const ROWS: &[ContractRow] =
    rows![p22_wait_for_all, p23_wait_for_the_first, p24_wait_for_the_first_failure, p25_timeout_of_a_wait_splits,];

/// A task that holds at a gate of its own, and that gate.
fn held(pool: &Pool, board: &Board, name: &str, value: u64) -> (TaskFuture<u64>, Gate) {
    let gate = board.gate(name);
    let task = pool.submit(pass { gate: gate.clone(), value });
    gate.wait_for_arrivals(1);
    (task, gate)
}

fn settled(task: TaskFuture<u64>) -> TaskFuture<u64> {
    assert!(eventually(seconds(30), || task.is_done()));
    task
}

/// Opens the gate when somebody is waiting, or about to.
fn open_meanwhile<R>(gate: &Gate, wait: impl FnOnce() -> R) -> R {
    std::thread::scope(|scope| {
        scope.spawn(|| gate.open());
        wait()
    })
}

fn p22_wait_for_all(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);
        let (first, gate) = held(&pool, &board, "a", 1);
        let tasks = vec![first, pool.submit(panic_with_literal {}), pool.submit(double { n: 2 })];
        let cancelled = pool.submit(double { n: 3 });
        cancelled.cancel();
        let waited = open_meanwhile(&gate, || waiting.wait(tasks.into_iter().chain([cancelled]), All, None));
        assert_eq!((waited.done.len(), waited.pending.len()), (4, 0), "{waiting:?}");
        assert!(waited.done.iter().filter(|outcome| outcome.is_err()).count() >= 1, "failures are among them");
    }
}

fn p23_wait_for_the_first(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);
        let (first, gate) = held(&pool, &board, "a", 1);
        let (second, other_gate) = held(&pool, &board, "b", 2);
        let waited = open_meanwhile(&gate, || waiting.wait([first, second], FirstCompleted, None));
        assert_eq!(waited.done.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [1]);
        assert_eq!(waited.pending.len(), 1);

        // One was finished before the call.
        let finished = settled(pool.submit(double { n: 4 }));
        let tasks = waited.pending.into_iter().chain([finished]);
        let waited = within(millis(200), || waiting.wait(tasks, FirstCompleted, None));
        assert_eq!(waited.done.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [8]);
        assert_eq!(waited.pending.len(), 1);
        other_gate.open();
        assert_eq!(waited.pending.into_iter().next().unwrap().wait().unwrap(), 2, "what was pending is still usable");
    }
}

fn p24_wait_for_the_first_failure(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);

        // A success does not end it, a failure does.
        let (held_back, hold) = held(&pool, &board, "hold", 1);
        let success = settled(pool.submit(double { n: 1 }));
        let (before_failure, gate) = held(&pool, &board, "before", 2);
        let failure = pool.submit(panic_with_literal {});
        let tasks = [held_back, success, failure, before_failure];
        let waited = open_meanwhile(&gate, || waiting.wait(tasks, FirstFailure, None));
        assert!(waited.done.iter().any(Result::is_err), "{waiting:?}");
        assert!(waited.done.iter().any(|outcome| outcome.as_ref().is_ok_and(|value| *value == 2)));
        let held_back = waited.pending.into_iter().next().expect("the one that is held");

        // A failure from before the call ends it at once.
        let failed = settled(pool.submit(panic_with_literal {}));
        let waited = within(millis(200), || waiting.wait([held_back, failed], FirstFailure, None));
        assert_eq!((waited.done.len(), waited.pending.len()), (1, 1));

        // A cancelled one is no failure; without a failure it is the same as waiting for all.
        let (busy, second_hold) = held(&pool, &board, "second hold", 3);
        let cancelled = pool.submit(double { n: 5 });
        assert!(cancelled.cancel());
        let tasks = waited.pending.into_iter().chain([cancelled, busy]);
        let start = Instant::now();
        let mut waited = waiting.wait(tasks, FirstFailure, Some(millis(50)));
        assert!(start.elapsed() >= millis(50), "it lasted for its full time");
        assert_eq!((waited.done.len(), waited.pending.len()), (1, 2), "the cancelled one did not end it");
        assert!(waited.done.pop().unwrap().unwrap_err().is_cancelled());
        hold.open();
        let waited = open_meanwhile(&second_hold, || waiting.wait(waited.pending, FirstFailure, None));
        assert_eq!((waited.done.len(), waited.pending.len()), (2, 0));
    }
}

fn p25_timeout_of_a_wait_splits(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);
        let (held_back, gate) = held(&pool, &board, "a", 1);
        let finished = settled(pool.submit(double { n: 1 }));
        let start = Instant::now();
        let waited = waiting.wait([held_back, finished], All, Some(millis(50)));
        let took = start.elapsed();
        assert!(took >= millis(50) && took < seconds(2), "{took:?}");
        assert_eq!((waited.done.len(), waited.pending.len()), (1, 1), "no error, but a split");
        gate.open();
        assert_eq!(waited.pending.into_iter().next().unwrap().wait().unwrap(), 1, "the wait ended, not the task");

        // An owned future can't be given twice; clones of a shared one are futures of their own, and each counts once.
        let shared = pool.submit(double { n: 4 }).map(|outcome| outcome.map_err(|error| error.to_string())).shared();
        let waited = waiting.wait(std::iter::repeat_n(shared, 2), All, None);
        assert_eq!((waited.done.as_slice(), waited.pending.len()), ([Ok(8), Ok(8)].as_slice(), 0));

        let waited = within(millis(200), || waiting.wait(Vec::<TaskFuture<u64>>::new(), All, None));
        assert_eq!((waited.done.len(), waited.pending.len()), (0, 0), "an empty set returns at once");
        let waited = waiting.wait(Vec::<TaskFuture<u64>>::new(), FirstCompleted, Some(seconds(30)));
        assert_eq!((waited.done.len(), waited.pending.len()), (0, 0));
    }
}
