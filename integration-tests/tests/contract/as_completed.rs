//! `as_completed` over the tasks of a pool.

use std::collections::BTreeSet;
use std::time::Instant;

use futures_ext::as_completed;
use futures_util::FutureExt as _;
use futures_util::StreamExt;
use futures_util::stream::FusedStream;
use integration_tests::tasks::{double, leave, panic_with_literal, pass, take_time};
use integration_tests::waiting::runtime;
use integration_tests::{Board, ContractRow, Fixture, Pool, Waiting, millis, rows, seconds};
use polypool::{ExecutorExt, Outcome, TaskFuture};

pub(crate) const ROWS: &[ContractRow] = rows![
    p17_as_completed_yields_all,
    p18_as_completed_times_out_after_the_finished_ones,
    p19_as_completed_takes_any_iterator_and_yields_each_once,
    p20_as_completed_in_the_order_of_completion,
    p20_as_completed_stays_ended,
    p20_dropping_as_completed_half_way_leaves_the_rest_usable,
    as_completed_of_tagged_tasks,
];

/// A task that has finished with 2, one that has failed and one that was cancelled.
fn finished(pool: &Pool) -> Vec<TaskFuture<u64>> {
    let tasks = vec![pool.submit(double { n: 1 }), pool.submit(panic_with_literal {}), pool.submit(double { n: 2 })];
    tasks[2].cancel();
    let tasks: Vec<_> = tasks.into_iter().collect();
    for task in &tasks {
        let (sender, done) = std::sync::mpsc::channel();
        task.on_done(move |_| sender.send(()).unwrap());
        done.recv().unwrap();
        // Callbacks run just before the outcome is visible.
        assert!(integration_tests::eventually(seconds(5), || task.is_done()));
    }
    tasks
}

fn kind(outcome: &Outcome<u64>) -> String {
    match outcome {
        Ok(value) => value.to_string(),
        Err(error) if error.is_cancelled() => "cancelled".to_owned(),
        Err(_) => "failed".to_owned(),
    }
}

fn p17_as_completed_yields_all(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(2);
        let mut tasks = finished(&pool);
        // One that was cancelled for certain; whether the other one ran before its cancel is not said.
        let third = if tasks[2].is_cancelled() { "cancelled" } else { "4" };
        let gate = board.gate("hold");
        tasks.push(pool.submit(pass { gate: gate.clone(), value: 10 }));
        tasks.push(pool.submit(pass { gate: gate.clone(), value: 11 }));
        gate.wait_for_arrivals(2);
        let never_ran = pool.submit(double { n: 3 });
        assert!(never_ran.cancel());
        tasks.push(never_ran);

        let opener = std::thread::spawn(move || gate.open());
        let mut kinds: Vec<_> = waiting.completed(tasks).iter().map(kind).collect();
        opener.join().unwrap();
        let mut expected = vec!["2", "failed", third, "10", "11", "cancelled"];
        kinds.sort();
        expected.sort_unstable();
        assert_eq!(kinds, expected, "{waiting:?}");
    }
}

fn p18_as_completed_times_out_after_the_finished_ones(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        for timeout in [millis(0), millis(100)] {
            let board = Board::new();
            let pool = executor.pool(2);
            let mut tasks = finished(&pool);
            let gate = board.gate("hold");
            tasks.insert(0, pool.submit(pass { gate: gate.clone(), value: 10 }));
            gate.wait_for_arrivals(1);

            let start = Instant::now();
            let items = waiting.completed_within(timeout, tasks);
            let took = start.elapsed();
            assert!(took >= timeout && took < timeout + seconds(2), "{took:?}");
            assert_eq!(items.len(), 4, "three finished ones and the timeout");
            assert!(items[..3].iter().all(Result::is_ok));
            let unfinished = *items[3].as_ref().unwrap_err();
            assert_eq!(unfinished.to_string(), "unfinished 1 of 4");
            assert_eq!((unfinished.unfinished(), unfinished.total()), (1, 4));
            gate.open();
        }
    }
}

fn p19_as_completed_takes_any_iterator_and_yields_each_once(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    for waiting in Waiting::BOTH {
        // A future is an owned value, so it can't be given twice. What comes next to it, three clones of a shared one
        // through a lazy iterator, are three futures: each gives its output once.
        let shared = pool.submit(double { n: 21 }).map(|outcome| outcome.map_err(|error| error.to_string())).shared();
        let lazy = std::iter::repeat_with(|| shared.clone()).take(3);
        assert_eq!(waiting.completed(lazy), [Ok(42), Ok(42), Ok(42)]);

        // And the futures themselves may come from a lazy iterator, too.
        let lazy = (0..3).map(|n| pool.submit(double { n }));
        let values: BTreeSet<_> = waiting.completed(lazy).into_iter().map(Result::unwrap).collect();
        assert_eq!(values, BTreeSet::from([0, 2, 4]));
    }
}

fn p20_as_completed_in_the_order_of_completion(executor: &'static dyn Fixture) {
    for waiting in Waiting::BOTH {
        let board = Board::new();
        let pool = executor.pool(3);
        // All three workers are there before the time is measured.
        let gate = board.gate("warm");
        let warm: Vec<_> = (0..3).map(|_| pool.submit(pass { gate: gate.clone(), value: 0 })).collect();
        gate.wait_for_arrivals(3);
        gate.open();
        waiting.completed(warm);

        let tasks = [300, 100, 200].map(|ms| pool.submit(take_time { ms }));
        let order: Vec<_> = waiting.completed(tasks).into_iter().map(Result::unwrap).collect();
        assert_eq!(order, [100, 200, 300], "{waiting:?}");
    }
}

fn p20_as_completed_stays_ended(executor: &'static dyn Fixture) {
    let pool = executor.pool(1);
    let mut done = as_completed([pool.submit(double { n: 1 })]).blocking();
    assert_eq!(done.next().unwrap().unwrap(), 2);
    assert!(done.next().is_none());
    assert!(done.next().is_none());
    assert!(as_completed(Vec::<TaskFuture<u64>>::new()).blocking().next().is_none(), "empty input ends at once");

    runtime().block_on(async {
        let mut done = as_completed([pool.submit(double { n: 1 })]);
        assert_eq!(done.next().await.unwrap().unwrap(), 2);
        assert!(done.next().await.is_none());
        assert!(done.is_terminated());
        assert!(done.next().await.is_none());
        assert!(as_completed(Vec::<TaskFuture<u64>>::new()).next().await.is_none());
    });
}

fn p20_dropping_as_completed_half_way_leaves_the_rest_usable(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(2);
    let gate = board.gate("hold");
    let mut tasks: Vec<_> = (0..3).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    tasks.push(pool.submit(double { n: 50 }));
    gate.wait_for_arrivals(2);
    assert!(tasks[2].cancel());

    // By reference: the futures are still the test's.
    let mut done = as_completed(tasks.iter_mut()).blocking();
    assert!(done.next().unwrap().unwrap_err().is_cancelled());
    drop(done);
    gate.open();
    let rest: Vec<_> = tasks.drain(..2).map(TaskFuture::wait).map(Result::unwrap).collect();
    assert_eq!(rest, [0, 1]);
    assert_eq!(tasks.pop().unwrap().wait().unwrap(), 100);

    // By value: the tasks run on, detached; or are taken out again.
    let (gate, traces) = (board.gate("second"), board.traces());
    let hold = pool.submit(pass { gate: gate.clone(), value: 0 }).boxed();
    let left = pool.submit(leave { traces: traces.clone(), text: "ran".into() }).map(|_| Ok(0)).boxed();
    let mut done = as_completed([hold, std::future::ready(Ok(7)).boxed(), left]).blocking();
    assert_eq!(done.next().unwrap().unwrap(), 7);
    drop(done);
    gate.open();
    assert_eq!(traces.wait_for(1), ["ran"]);

    let gate = board.gate("third");
    let late = pool.submit(pass { gate: gate.clone(), value: 8 });
    let mut done = as_completed([late]).timeout(millis(1)).blocking();
    assert!(done.next().unwrap().is_err());
    let pending: Vec<_> = done.into_inner().into_pending().collect();
    gate.open();
    assert_eq!(pending.into_iter().map(|task| task.wait().unwrap()).collect::<Vec<_>>(), [8]);
}

fn as_completed_of_tagged_tasks(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    for waiting in Waiting::BOTH {
        let tasks = (0..20).map(|n| pool.submit(double { n }).tagged(n));
        let mut pairs: Vec<_> =
            waiting.completed(tasks).into_iter().map(|(n, outcome)| (n, outcome.unwrap())).collect();
        pairs.sort_unstable();
        assert_eq!(pairs, (0..20).map(|n| (n, 2 * n)).collect::<Vec<_>>());
    }
}
