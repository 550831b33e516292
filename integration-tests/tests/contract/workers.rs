//! The workers: how many, what they are called, when they start.

use std::collections::BTreeSet;

use integration_tests::fixture::own_prefix;
use integration_tests::tasks::{pass, whereabouts};
use integration_tests::{Board, ContractRow, Fixture, Spec, millis, rows};
use polypool::{BuildError, ExecutorExt};

pub(crate) const ROWS: &[ContractRow] = rows![
    p57_size_0_is_refused,
    p57_default_size_is_the_documented_one,
    p57_workers_carry_readable_names,
    p58_blocked_tasks_create_exactly_n_workers,
    p59_idle_worker_is_reused,
    p59_workers_start_on_demand,
    options_that_cannot_work_are_refused,
];

fn p57_size_0_is_refused(executor: &'static dyn Fixture) {
    match executor.try_build(Spec::workers(0)) {
        Err(BuildError::InvalidOption(text)) => assert!(text.contains("workers(0)"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn options_that_cannot_work_are_refused(executor: &'static dyn Fixture) {
    match executor.try_build(Spec::default().backlog(0)) {
        Err(BuildError::InvalidOption(text)) => assert!(text.contains("backlog(0)"), "{text}"),
        other => panic!("{other:?}"),
    }
    match executor.try_build(Spec::default().name_prefix("a\0b")) {
        Err(BuildError::InvalidOption(text)) => assert!(text.contains("name_prefix"), "{text}"),
        other => panic!("{other:?}"),
    }
}

fn p57_default_size_is_the_documented_one(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.build(Spec::default());
    let gate = board.gate("hold");
    let size = executor.default_workers();
    let tasks: Vec<_> = (0..3 * size as u64).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(size);
    std::thread::sleep(millis(50)); // for a worker too many to show up
    assert_eq!((gate.arrivals(), pool.stats().workers.len()), (size, size));
    gate.open();
    for task in tasks {
        task.wait().unwrap();
    }
}

fn p57_workers_carry_readable_names(executor: &'static dyn Fixture) {
    let board = Board::new();
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(3).name_prefix(&prefix));
    let gate = board.gate("hold");
    let _tasks: Vec<_> = (0..3).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(3);
    let expected = BTreeSet::from([0, 1, 2].map(|number| format!("{prefix}-{number}")));
    let named: BTreeSet<_> = pool.stats().workers.into_iter().map(|worker| worker.name).collect();
    assert_eq!(named, expected);
    if let Some(shown) = executor.os_workers(&prefix) {
        assert_eq!(BTreeSet::from_iter(shown), expected, "the system shows the same");
    }
    gate.open();
}

fn p58_blocked_tasks_create_exactly_n_workers(executor: &'static dyn Fixture) {
    for workers in [1, 4] {
        let board = Board::new();
        let prefix = format!("{}{workers}", own_prefix());
        let pool = executor.build(Spec::workers(workers).name_prefix(&prefix));
        let gate = board.gate("hold");
        let check = |exactly: bool| {
            let counted = pool.stats().workers.len();
            let shown = executor.os_workers(&prefix).map_or(counted, |names| names.len());
            assert!(counted <= workers && shown <= workers, "{counted} counted, {shown} shown");
            assert!(!exactly || (counted == workers && shown == workers), "{counted} counted, {shown} shown");
        };
        let tasks: Vec<_> = (0..15 * workers as u64)
            .map(|value| {
                check(false);
                pool.submit(pass { gate: gate.clone(), value })
            })
            .collect();
        gate.wait_for_arrivals(workers);
        for _ in 0..20 {
            check(true);
            std::thread::sleep(millis(2));
        }
        assert_eq!(gate.arrivals(), workers);
        gate.open();
        for task in tasks {
            check(true);
            task.wait().unwrap();
        }
        check(true);
    }
}

fn p59_idle_worker_is_reused(executor: &'static dyn Fixture) {
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(4).name_prefix(&prefix));
    let mut used = BTreeSet::new();
    for _ in 0..3 {
        used.insert(executor.worker(&pool.submit(whereabouts {}).wait().unwrap()));
    }
    assert_eq!((used.len(), pool.stats().workers.len()), (1, 1));
    // The row asks for three; a wake-up that comes too late shows only in many.
    for _ in 0..500 {
        used.insert(executor.worker(&pool.submit(whereabouts {}).wait().unwrap()));
    }
    assert_eq!((used.len(), pool.stats().workers.len()), (1, 1));
    assert!(executor.os_workers(&prefix).is_none_or(|names| names.len() == 1));
}

fn p59_workers_start_on_demand(executor: &'static dyn Fixture) {
    let board = Board::new();
    let prefix = own_prefix();
    let pool = executor.build(Spec::workers(4).name_prefix(&prefix));
    assert!(executor.os_workers(&prefix).is_none_or(|names| names.is_empty()), "none before the first task");
    assert_eq!(pool.stats().workers.len(), 0);
    let gate = board.gate("hold");
    for number in 1..=4 {
        pool.submit(pass { gate: gate.clone(), value: 0 }).detach();
        gate.wait_for_arrivals(number);
        assert_eq!(pool.stats().workers.len(), number, "one more for one more task");
    }
    gate.open();
}
