//! Submitting: from many threads, in order, in floods, and when there is no room.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt as _;
use integration_tests::tasks::{double, hold_tracked, leave, pass};
use integration_tests::waiting::runtime;
use integration_tests::{Board, ContractRow, Fixture, Spec, Tracked, eventually, rows, seconds};
use polypool::{
    Executor, ExecutorExt, Priority, Shutdown, SubmitError, TaskError, TaskFuture, TaskOptions, TrySubmitError,
};

pub(crate) const ROWS: &[ContractRow] = rows![
    p27_many_threads_share_one_executor,
    p35_one_worker_keeps_the_order,
    p35_flood_of_tiny_tasks,
    p55_arguments_are_released_when_the_task_is_over,
    priorities_go_first_and_keep_their_order,
    full_backlog_refuses_with_its_limit,
    full_backlog_gives_the_task_back,
    reserve_waits_for_room,
    dropped_reservation_gives_its_place_back,
    cancelled_queued_task_frees_its_place_at_once,
    reserve_fails_when_the_pool_is_shut_down_meanwhile,
    map_waits_for_room_in_the_backlog,
    names_ids_and_debug,
    trait_object_is_as_good_as_the_pool,
    stats_count_what_happens,
];

fn p27_many_threads_share_one_executor(executor: &'static dyn Fixture) {
    let pool = executor.pool(2);
    std::thread::scope(|scope| {
        for thread in 0..10_u64 {
            let pool = &pool;
            scope.spawn(move || {
                let numbers = || (0..50).map(move |n| 1_000 * thread + n);
                let kept: Vec<_> = numbers().map(|n| (n, pool.submit(double { n }))).collect();
                let cancelled: Vec<_> = numbers()
                    .map(|n| (n, pool.submit(double { n })))
                    .inspect(|(_, task)| {
                        task.cancel();
                    })
                    .collect();
                let mapped: Vec<_> =
                    pool.map(numbers().map(|n| double { n })).chunk_size(7).blocking().map(Result::unwrap).collect();
                assert_eq!(mapped, numbers().map(|n| 2 * n).collect::<Vec<_>>());
                for (n, task) in kept {
                    assert_eq!(task.wait().unwrap(), 2 * n);
                }
                for (n, task) in cancelled {
                    let was_cancelled = task.is_cancelled();
                    match task.wait() {
                        Ok(value) => assert_eq!((value, was_cancelled), (2 * n, false)),
                        Err(error) => assert!(error.is_cancelled() && was_cancelled, "{error}"),
                    }
                }
            });
        }
    });
}

fn p35_one_worker_keeps_the_order(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let _busy = pool.submit(pass { gate: gate.clone(), value: 0 });
    let tasks: Vec<_> = (0..100).map(|n| pool.submit(leave { traces: traces.clone(), text: n.to_string() })).collect();
    gate.open();
    for task in tasks {
        task.wait().unwrap();
    }
    assert_eq!(traces.all(), (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
}

fn p35_flood_of_tiny_tasks(executor: &'static dyn Fixture) {
    let (workers, count) = if executor.has_processes() { (2, 50_000) } else { (4, 10_000) };
    let pool = executor.pool(workers);
    let tasks: Vec<_> = (0..count).map(|n| pool.submit(double { n })).collect();
    for (n, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.wait().unwrap(), 2 * n as u64);
    }
}

fn p55_arguments_are_released_when_the_task_is_over(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let task = pool.submit(hold_tracked { tracked: Tracked::new(1), gate: gate.clone() });
    gate.wait_for_arrivals(1);
    drop(task);
    let started = Instant::now();
    gate.open();
    assert!(eventually(seconds(1), || Tracked::live_in_all() == 0), "still alive after {:?}", started.elapsed());

    // The same with the future still there, and its outcome unread.
    let task = pool.submit(hold_tracked { tracked: Tracked::new(2), gate });
    assert!(eventually(seconds(30), || task.is_done()));
    assert!(eventually(seconds(1), || Tracked::live_in_all() == 0));
    assert_eq!(task.wait().unwrap(), 2);
    assert_eq!(pool.stats().workers.len(), 1, "the worker idles");
}

fn priorities_go_first_and_keep_their_order(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let (gate, traces) = (board.gate("hold"), board.traces());
    let _busy = pool.submit(pass { gate: gate.clone(), value: 0 });
    gate.wait_for_arrivals(1);
    let mut tasks = Vec::new();
    for (priority, text) in [
        (Priority::Low, "low 0"),
        (Priority::Normal, "normal 0"),
        (Priority::High, "high 0"),
        (Priority::Low, "low 1"),
        (Priority::Normal, "normal 1"),
        (Priority::High, "high 1"),
    ] {
        let task = leave { traces: traces.clone(), text: text.to_owned() };
        tasks.push(pool.submit_with(task, TaskOptions::new().priority(priority)));
    }
    gate.open();
    for task in tasks {
        task.wait().unwrap();
    }
    assert_eq!(traces.all(), ["high 0", "high 1", "normal 0", "normal 1", "low 0", "low 1"]);
}

/// A pool of one worker that is held, with a full backlog of two.
fn full(executor: &'static dyn Fixture, board: &Board) -> (integration_tests::Pool, Vec<TaskFuture<u64>>) {
    let pool = executor.build(Spec::workers(1).backlog(2));
    let gate = board.gate("hold");
    let mut tasks = vec![pool.submit(pass { gate: gate.clone(), value: 0 })];
    gate.wait_for_arrivals(1);
    tasks.extend((1..3).map(|value| pool.submit(pass { gate: gate.clone(), value })));
    assert_eq!(pool.stats().queued, 2);
    (pool, tasks)
}

fn values(tasks: Vec<TaskFuture<u64>>) -> Vec<u64> {
    tasks.into_iter().map(|task| task.wait().unwrap()).collect()
}

fn full_backlog_refuses_with_its_limit(executor: &'static dyn Fixture) {
    let board = Board::new();
    let (pool, tasks) = full(executor, &board);
    let refused = pool.submit(hold_tracked { tracked: Tracked::new(1), gate: board.gate("hold") });
    assert_eq!(Tracked::live(1), 0, "what was refused is dropped");
    match refused.wait() {
        Err(TaskError::Rejected(SubmitError::Full { limit: 2 })) => {}
        other => panic!("{other:?}"),
    }
    board.gate("hold").open();
    assert_eq!(values(tasks), [0, 1, 2]);
    assert_eq!(pool.submit(double { n: 2 }).wait().unwrap(), 4, "there is room again");
}

fn full_backlog_gives_the_task_back(executor: &'static dyn Fixture) {
    let board = Board::new();
    let (pool, tasks) = full(executor, &board);
    let TrySubmitError { task, error, .. } = pool.try_submit(double { n: 7 }).unwrap_err();
    assert_eq!(task.n, 7);
    assert!(matches!(error, SubmitError::Full { limit: 2 }), "{error}");
    assert!(error.to_string().contains("reserve"), "the text says what helps: {error}");
    board.gate("hold").open();
    assert_eq!(values(tasks), [0, 1, 2]);
    assert_eq!(pool.try_submit(task).unwrap().wait().unwrap(), 14);
}

fn reserve_waits_for_room(executor: &'static dyn Fixture) {
    let board = Board::new();
    let (pool, tasks) = full(executor, &board);
    let mut reserve = Box::pin(pool.reserve());
    assert!((&mut reserve).now_or_never().is_none(), "no room yet");
    board.gate("hold").open();
    let place = runtime().block_on(reserve).unwrap();
    assert_eq!(place.submit(double { n: 5 }).wait().unwrap(), 10);
    assert_eq!(values(tasks), [0, 1, 2]);
}

fn dropped_reservation_gives_its_place_back(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1).backlog(1));
    let place = pool.reserve().now_or_never().unwrap().unwrap();
    assert!(pool.reserve().now_or_never().is_none(), "the only place is taken, although nothing is queued");
    assert!(matches!(pool.try_submit(double { n: 1 }).unwrap_err().error, SubmitError::Full { limit: 1 }));
    drop(place);
    assert_eq!(pool.try_submit(double { n: 1 }).unwrap().wait().unwrap(), 2);
}

fn cancelled_queued_task_frees_its_place_at_once(executor: &'static dyn Fixture) {
    let board = Board::new();
    let (pool, tasks) = full(executor, &board);
    let mut waiting = Box::pin(pool.reserve());
    assert!((&mut waiting).now_or_never().is_none());
    assert!(tasks[1].cancel());
    let place = waiting.now_or_never().expect("there is room as soon as the cancel has returned").unwrap();
    assert!(matches!(pool.try_submit(double { n: 1 }).unwrap_err().error, SubmitError::Full { .. }));
    let last = place.submit(double { n: 9 });
    board.gate("hold").open();
    assert_eq!(last.wait().unwrap(), 18);
}

fn reserve_fails_when_the_pool_is_shut_down_meanwhile(executor: &'static dyn Fixture) {
    let board = Board::new();
    let (pool, tasks) = full(executor, &board);
    let mut reserve = Box::pin(pool.reserve());
    assert!((&mut reserve).now_or_never().is_none());
    let terminated = pool.shutdown(Shutdown::Drain);
    assert!(matches!(runtime().block_on(reserve).unwrap_err(), SubmitError::ShutDown));
    assert!(matches!(pool.try_submit(double { n: 1 }).unwrap_err().error, SubmitError::ShutDown));
    board.gate("hold").open();
    terminated.wait();
    assert_eq!(values(tasks), [0, 1, 2]);
}

fn map_waits_for_room_in_the_backlog(executor: &'static dyn Fixture) {
    let pool = executor.build(Spec::workers(1).backlog(2));
    for chunk in [1, 3] {
        let mapped: Result<Vec<_>, _> =
            pool.map((0..200).map(|n| double { n })).chunk_size(chunk).buffer(50).blocking().collect();
        assert_eq!(mapped.unwrap(), (0..200).map(|n| 2 * n).collect::<Vec<_>>());
    }
}

fn names_ids_and_debug(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(1);
    let gate = board.gate("hold");
    let first = pool.submit(pass { gate: gate.clone(), value: 1 });
    let second = pool.submit_with(pass { gate: gate.clone(), value: 2 }, TaskOptions::new().name("the second"));
    assert!(first.name().ends_with("tasks::pass"), "{}", first.name());
    assert_eq!(second.name(), "the second");
    assert_eq!(second.handle().name(), "the second");
    assert!(first.id() < second.id());
    assert_eq!(first.handle().id(), first.id());
    let shown = format!("{second:?}");
    assert!(
        shown.contains("the second") && shown.contains("Queued") && shown.contains(&second.id().to_string()),
        "{shown}"
    );
    assert!(format!("{:?}", second.handle()).contains("the second"));
    assert!(!format!("{pool:?}").is_empty());
    gate.open();
    assert_eq!((first.wait().unwrap(), second.wait().unwrap()), (1, 2));
}

/// What a service writes that does not know its pool.
fn sum_of_doubles(executor: &(impl Executor + ?Sized), numbers: std::ops::Range<u64>) -> u64 {
    let one = executor.submit(double { n: 0 }).wait().unwrap();
    one + executor.map(numbers.map(|n| double { n })).blocking().map(Result::unwrap).sum::<u64>()
}

fn trait_object_is_as_good_as_the_pool(executor: &'static dyn Fixture) {
    let pool: Arc<dyn Executor> = executor.pool(2);
    assert_eq!(sum_of_doubles(&pool, 0..10), 90);
    assert_eq!(sum_of_doubles(&*pool, 0..10), 90);
    let again: Arc<dyn Executor> = pool.handle();
    drop(pool);
    assert_eq!(sum_of_doubles(&again, 0..10), 90, "another handle keeps the pool");
    again.shutdown(Shutdown::Drain).wait();
}

fn stats_count_what_happens(executor: &'static dyn Fixture) {
    let board = Board::new();
    let pool = executor.pool(2);
    let gate = board.gate("hold");
    let tasks: Vec<_> = (0..5).map(|value| pool.submit(pass { gate: gate.clone(), value })).collect();
    gate.wait_for_arrivals(2);
    assert!(eventually(seconds(5), || pool.stats().running == 2));
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.submitted, stats.completed), (3, 5, 0));
    assert_eq!(stats.workers.iter().filter(|worker| worker.busy).count(), 2);
    gate.open();
    assert_eq!(values(tasks), [0, 1, 2, 3, 4]);
    assert!(eventually(seconds(5), || pool.stats().completed == 5));
    let stats = pool.stats();
    assert_eq!((stats.queued, stats.running, stats.skipped, stats.retried), (0, 0, 0, 0));
    assert_eq!(stats.workers.iter().map(|worker| worker.completed).sum::<u64>(), 5);
}
