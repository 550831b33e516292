//! The words of `multiprocessing.Pool`, over each executor.

use integration_tests::tasks::{add, double, panic_with_literal, pass};
use integration_tests::{Board, ContractRow, Fixture, Spec, rows, seconds, within};
use polypool::{Executor, Outcome, Pool, StillOpen, SubmitError, TaskError};
use std::sync::mpsc;

pub(crate) const ROWS: &[ContractRow] = rows![
    s3_all_calls_agree_with_doing_it_here,
    s3_one_callback_for_each_job,
    s3_terminate_is_quick_with_much_that_waits,
    s3_closed_pool_refuses_and_can_be_joined,
];

fn s3_all_calls_agree_with_doing_it_here(executor: &'static dyn Fixture) {
    let pool = Pool::over(executor.build(Spec::workers(2)));
    assert_eq!(pool.apply(double { n: 4 }).unwrap(), 8);
    assert_eq!(pool.apply_async(double { n: 5 }).wait().unwrap(), 10);
    for count in [0, 1, 100] {
        let expected: Vec<u64> = (0..count).map(|n| n * 2).collect();
        assert_eq!(pool.map(|n| double { n }, 0..count).unwrap(), expected);
        assert_eq!(pool.starmap(|(a, b)| add { a, b }, (0..count).zip(0..count)).unwrap(), expected);
        assert_eq!(pool.map_async(|n| double { n }, 0..count).wait().unwrap(), expected);
        assert_eq!(pool.imap(|n| double { n }, 0..count).collect::<Outcome<Vec<_>>>().unwrap(), expected);
        let mut unordered = pool.imap_unordered(|n| double { n }, 0..count).collect::<Outcome<Vec<_>>>().unwrap();
        unordered.sort_unstable();
        assert_eq!(unordered, expected);
    }
}

fn s3_one_callback_for_each_job(executor: &'static dyn Fixture) {
    let pool = Pool::over(executor.build(Spec::workers(2)));
    let (sender, called) = mpsc::channel();
    let good = |say: &mpsc::Sender<String>| {
        let say = say.clone();
        move |value: &u64| say.send(format!("value {value}")).unwrap()
    };
    let bad = |say: &mpsc::Sender<String>| {
        let say = say.clone();
        move |error: &TaskError| say.send(format!("panic {}", matches!(error, TaskError::Panicked(_)))).unwrap()
    };
    let all = sender.clone();
    let list = move |values: &Vec<u64>| all.send(format!("values {values:?}")).unwrap();
    pool.apply_async_with(double { n: 4 }, good(&sender), bad(&sender)).wait().unwrap();
    pool.apply_async_with(panic_with_literal {}, good(&sender), bad(&sender)).wait().unwrap_err();
    // Nobody waits for it.
    pool.map_async_with(|n| double { n }, 0..3, list, bad(&sender)).detach();
    let limit = seconds(10);
    let calls = [(); 3].map(|()| called.recv_timeout(limit).unwrap());
    assert_eq!(calls, ["value 8", "panic true", "values [0, 2, 4]"]);
    pool.close();
    pool.join().unwrap();
    drop(sender);
    assert!(called.recv().is_err(), "one each");
}

fn s3_terminate_is_quick_with_much_that_waits(executor: &'static dyn Fixture) {
    let board = Board::new();
    let gate = board.gate("gate");
    let pool = Pool::over(executor.build(Spec::workers(1)));
    let running = pool.apply_async(pass { gate: gate.clone(), value: 1 });
    gate.wait_for_arrivals(1);
    let waiting: Vec<_> = (0..10_000).map(|n| pool.apply_async(double { n })).collect();
    let mapped = pool.map_async(|n| double { n }, 0..10_000);
    within(seconds(10), || {
        pool.terminate();
        assert!(running.wait().unwrap_err().is_cancelled());
        assert!(mapped.wait().unwrap_err().is_cancelled());
        assert!(waiting.into_iter().all(|task| task.wait().unwrap_err().is_cancelled()));
    });
    gate.open();
    pool.join().unwrap();
}

fn s3_closed_pool_refuses_and_can_be_joined(executor: &'static dyn Fixture) {
    let pool = Pool::over(executor.build(Spec::workers(2)));
    assert_eq!(pool.join(), Err(StillOpen));
    let values = pool.map_async(|n| double { n }, 0..100);
    pool.close();
    assert!(matches!(pool.apply(double { n: 1 }), Err(TaskError::Rejected(SubmitError::ShutDown))));
    assert!(matches!(pool.map(|n| double { n }, 0..3), Err(TaskError::Rejected(SubmitError::ShutDown))));
    pool.join().unwrap();
    assert_eq!(values.wait().unwrap().len(), 100);
    assert_eq!(pool.executor().stats().running, 0);
}
