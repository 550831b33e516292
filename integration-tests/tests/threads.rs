//! What only a thread pool has: closures, futures, values that can't leave the process, waiting inside a task.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use futures_ext::{All, CancellationToken, Elapsed, as_completed};
use futures_util::FutureExt as _;
use integration_tests::fixture::own_prefix;
use integration_tests::tasks::{all_but, double, pass, take_time};
use integration_tests::waiting::runtime;
use integration_tests::{Board, EXECUTORS, Fixture, Row, Suite, Waiting, eventually, millis, rows, seconds, within};
use polypool::{
    BuildError, CodecError, Completer, Executor, ExecutorExt, MAX_EXTRA_WORKERS, Shutdown, SubmitError, TaskError,
    TaskFuture, TaskOptions, TaskState, ThreadPool, context, wait_all,
};

const ROWS: &[Row<fn()>] = rows![
    p04_many_waiters_get_the_same_outcome,
    p12_callbacks_run_in_order_and_once_on_a_pool,
    p13_zero_timeout_over_every_state_of_a_task,
    p13_outcome_that_arrives_half_way_ends_the_wait,
    p15_timeout_of_the_task_is_not_the_timeout_of_the_wait,
    p15_timeout_of_the_task_is_not_the_timeout_of_the_map,
    p21_as_completed_does_not_hold_what_it_yielded,
    p21_completing_another_future_in_the_loop_yields_it_once,
    p26_no_wake_up_is_lost,
    refused_closure_is_dropped_and_not_run,
    closures_and_futures_run,
    futures_run_on_a_runtime_of_the_pool,
    async_limit_is_kept,
    retries_of_a_closure_are_refused,
    error_of_an_initializer_breaks_the_pool,
    callbacks_run_on_the_thread_that_decides,
    wait_inside_a_task_grows_the_pool,
    wait_inside_a_task_grows_the_pool_for_as_long_only,
    wait_inside_a_task_has_a_limit_that_says_so,
    every_wait_inside_a_task_grows_the_pool,
    blocking_wait_in_an_asynchronous_task_panics,
    awaiting_in_an_asynchronous_task_works,
    shutdown_in_a_task_does_not_hang,
    shutdown_in_an_asynchronous_task_does_not_hang,
    dropping_the_pool_in_a_task_does_not_hang,
    now_does_not_wait_for_a_closure_that_overstays,
    panic_in_a_drop_does_not_kill_the_worker,
    worker_that_drops_a_late_value_can_be_woken,
    wait_all_keeps_the_order_and_the_failures,
    chunks_of_a_map_are_chosen_by_time,
    chunks_that_a_map_chooses_fail_one_by_one,
    cancelled_tasks_leave_the_backlog_of_a_stuck_worker,
    happens_before,
    no_thread_of_the_pool_is_left,
    context_travels_into_threads_and_futures,
    options_that_cannot_work_are_refused_by_threads,
    pool_is_send_and_sync,
];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("threads").tests(ROWS).run()
}

fn pool(workers: usize) -> ThreadPool {
    ThreadPool::builder().workers(workers).build().unwrap()
}

/// A gate for closures, which share memory with their test.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<(bool, usize)>, Condvar)>);

impl Door {
    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.1 += 1;
        changed.notify_all();
        while !state.0 {
            state = changed.wait(state).unwrap();
        }
    }

    fn open(&self) {
        self.0.0.lock().unwrap().0 = true;
        self.0.1.notify_all();
    }

    fn wait_for_arrivals(&self, count: usize) {
        let mut state = self.0.0.lock().unwrap();
        while state.1 < count {
            state = self.0.1.wait(state).unwrap();
        }
    }
}

/// A pool of one worker that is held at the door.
fn held() -> (ThreadPool, Door, TaskFuture<u32>) {
    let (pool, door) = (pool(1), Door::default());
    let inner = door.clone();
    let busy = pool.spawn(move || {
        inner.pass();
        7
    });
    door.wait_for_arrivals(1);
    (pool, door, busy)
}

fn p04_many_waiters_get_the_same_outcome() {
    for fails in [false, true] {
        let (pool, door) = (pool(1), Door::default());
        let inner = door.clone();
        let one = pool
            .spawn(move || {
                inner.pass();
                assert!(!fails, "on purpose");
                String::from("the value")
            })
            .shared();
        let ready = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..200)
            .map(|_| {
                let (one, ready) = (one.clone(), ready.clone());
                std::thread::spawn(move || {
                    ready.fetch_add(1, Ordering::SeqCst);
                    futures_ext::FutureExt::wait(one)
                })
            })
            .collect();
        let runtime = runtime();
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let (one, ready) = (one.clone(), ready.clone());
                runtime.spawn(async move {
                    ready.fetch_add(1, Ordering::SeqCst);
                    one.await
                })
            })
            .collect();
        assert!(eventually(seconds(30), || ready.load(Ordering::SeqCst) == 400));
        within(seconds(2), || {
            door.open();
            let blocked = threads.into_iter().map(|thread| thread.join().unwrap());
            let awaited = tasks.into_iter().map(|task| runtime.block_on(task).unwrap());
            let outcomes: Vec<_> = blocked.chain(awaited).collect();
            assert_eq!(outcomes.len(), 400);
            for outcome in outcomes {
                match outcome {
                    Ok(value) => assert!(!fails && value == "the value"),
                    Err(error) => assert!(fails && error.to_string().ends_with("on purpose"), "{error}"),
                }
            }
        });
    }
}

fn p12_callbacks_run_in_order_and_once_on_a_pool() {
    let (pool, door, busy) = held();
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..5 {
        let order = order.clone();
        busy.on_done(move |_| order.lock().unwrap().push(number));
    }
    let queued = pool.spawn(|| 1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    queued.on_done(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (0..3).for_each(|_| assert!(queued.cancel()));
    door.open();
    assert_eq!(busy.wait().unwrap(), 7);
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    // The worker has reached the cancelled one when the next is done.
    pool.spawn(|| ()).wait().unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

fn p13_zero_timeout_over_every_state_of_a_task() {
    let (pool, door, mut running) = held();
    let mut queued = pool.spawn(|| 1);
    let mut cancelled = pool.spawn(|| 2);
    assert!(cancelled.cancel());
    assert!(queued.wait_timeout(Duration::ZERO).is_err());
    assert!(running.wait_timeout(Duration::ZERO).is_err());
    assert!(cancelled.wait_timeout(Duration::ZERO).unwrap().unwrap_err().is_cancelled());
    let runtime = runtime();
    runtime.block_on(async {
        assert!(futures_ext::FutureExt::timeout(&mut queued, Duration::ZERO).await.is_err());
        assert!(futures_ext::FutureExt::timeout(&mut running, Duration::ZERO).await.is_err());
    });
    let failed = || {
        let task = pool.spawn(|| -> u32 { panic!("on purpose") });
        let handle = task.handle();
        (task, handle)
    };
    let ((mut first, a), (second, b)) = (failed(), failed());
    door.open();
    assert!(eventually(seconds(5), || a.is_done() && b.is_done()));
    assert!(matches!(first.wait_timeout(Duration::ZERO), Ok(Err(TaskError::Panicked(_)))));
    assert!(matches!(
        runtime.block_on(async { second.timeout(Duration::ZERO).await }),
        Ok(Err(TaskError::Panicked(_)))
    ));
    assert_eq!(queued.wait_timeout(Duration::ZERO).unwrap().unwrap(), 1);
    assert_eq!(runtime.block_on(async { running.timeout(Duration::ZERO).await }).unwrap().unwrap(), 7);
}

fn p13_outcome_that_arrives_half_way_ends_the_wait() {
    for awaited in [false, true] {
        let pool = pool(1);
        let start = Instant::now();
        let mut task = pool.spawn(|| std::thread::sleep(millis(50)));
        let outcome = if awaited {
            runtime().block_on(async { task.timeout(seconds(30)).await })
        } else {
            task.wait_timeout(seconds(30))
        };
        let took = start.elapsed();
        outcome.unwrap().unwrap();
        assert!(took >= millis(50) && took < seconds(2), "{took:?}");
    }
}

fn p15_timeout_of_the_task_is_not_the_timeout_of_the_wait() {
    let pool = pool(1);
    // An error of the task's own is its value, also when it is the very type a wait returns.
    let mut own = pool.spawn(|| Err::<(), Elapsed>(Elapsed::new(millis(1))));
    assert_eq!(own.wait_timeout(seconds(30)).unwrap().unwrap(), Err(Elapsed::new(millis(1))));
    let own = pool.spawn(|| Err::<(), _>(std::io::ErrorKind::TimedOut));
    assert_eq!(
        runtime().block_on(async { own.timeout(seconds(30)).await }).unwrap().unwrap(),
        Err(std::io::ErrorKind::TimedOut)
    );

    // The task's running time is up.
    let options = || TaskOptions::new().timeout(millis(20));
    let door = Door::default();
    let inner = door.clone();
    let mut timed_out = pool.spawn_with(move || inner.pass(), options());
    assert!(matches!(timed_out.wait_timeout(seconds(30)), Ok(Err(TaskError::TimedOut { .. }))));
    door.open();

    // The wait is up.
    let (_pool, door, mut running) = held();
    let elapsed = running.wait_timeout(millis(20)).unwrap_err();
    assert_eq!(elapsed.duration(), millis(20));
    assert!(!running.is_done());
    door.open();
    assert_eq!(running.wait().unwrap(), 7);
}

/// Ends with a timeout of its own.
#[polypool::task]
fn time_out_itself(n: u64) -> Result<u64, String> {
    if n == 1 { Err("timed out".to_owned()) } else { Ok(n) }
}

fn p15_timeout_of_the_task_is_not_the_timeout_of_the_map() {
    let pool = pool(2);
    for waiting in Waiting::BOTH {
        let map = pool.map((0..3).map(|n| time_out_itself { n })).timeout(seconds(30));
        let outcomes: Vec<_> = waiting.iterate(map).map(Result::unwrap).collect();
        assert_eq!(outcomes, [Ok(0), Err("timed out".to_owned()), Ok(2)], "an error of the task's own is a value");

        let board = Board::new();
        let tasks = |name| vec![pass { gate: board.gate(name), value: 0 }];
        let map = pool.map(tasks("a")).timeout(seconds(30)).options(TaskOptions::new().timeout(millis(20)));
        let outcomes: Vec<_> = waiting.iterate(map).collect();
        assert!(matches!(outcomes[..], [Err(TaskError::TimedOut { .. })]), "{outcomes:?}");

        let map = pool.map(tasks("b")).timeout(millis(20)).options(TaskOptions::new().timeout(seconds(30)));
        let outcomes: Vec<_> = waiting.iterate(map).collect();
        assert!(matches!(outcomes[..], [Err(TaskError::WaitElapsed(_))]), "{outcomes:?}");
        board.gate("a").open();
        board.gate("b").open();
    }
}

fn p21_as_completed_does_not_hold_what_it_yielded() {
    let pool = pool(2);
    let mut weak: Vec<Weak<u32>> = Vec::new();
    let tasks: Vec<_> = (0..10_u32)
        .map(|n| {
            let value = Arc::new(n);
            weak.push(Arc::downgrade(&value));
            // The closure drops its own reference before the outcome is there.
            pool.spawn(move || value)
        })
        .collect();
    let mut yielded = BTreeSet::new();
    for outcome in as_completed(tasks).blocking() {
        let value = outcome.unwrap();
        let number = *value;
        assert!(eventually(seconds(1), || Arc::strong_count(&value) == 1), "the loop's copy is the last");
        drop(value);
        assert!(weak[number as usize].upgrade().is_none());
        yielded.insert(number);
    }
    assert_eq!(yielded.len(), 10);
}

fn p21_completing_another_future_in_the_loop_yields_it_once() {
    for awaited in [false, true] {
        let (completers, futures): (Vec<Completer<usize>>, Vec<_>) = (0..10).map(|_| TaskFuture::pair()).unzip();
        completers[0].complete(Ok(0)).unwrap();
        let mut yielded = Vec::new();
        let body = |outcome: Result<usize, TaskError>| {
            let number = outcome.unwrap();
            if let Some(next) = completers.get(number + 1) {
                next.complete(Ok(number + 1)).unwrap();
            }
            yielded.push(number);
        };
        if awaited {
            use futures_util::StreamExt;
            runtime().block_on(as_completed(futures).map(body).collect::<Vec<()>>());
        } else {
            as_completed(futures).blocking().for_each(body);
        }
        assert_eq!(yielded, (0..10).collect::<Vec<_>>());
    }
}

fn p26_no_wake_up_is_lost() {
    let pool = pool(100);
    for round in 0..200 {
        let door = Door::default();
        let tasks: Vec<_> = (0..100)
            .map(|n| {
                let door = door.clone();
                pool.spawn(move || {
                    door.pass();
                    n
                })
            })
            .collect();
        door.wait_for_arrivals(100);
        let opener = {
            let door = door.clone();
            std::thread::spawn(move || door.open())
        };
        let waiting = Waiting::BOTH[round % 2];
        let waited = within(seconds(2), || waiting.wait(tasks, All, None));
        assert_eq!((waited.done.len(), waited.pending.len()), (100, 0));
        opener.join().unwrap();
    }
}

fn refused_closure_is_dropped_and_not_run() {
    let pool = pool(1);
    pool.shutdown(Shutdown::Drain).wait();
    let (ran, value) = (Arc::new(AtomicBool::new(false)), Arc::new(()));
    let weak = Arc::downgrade(&value);
    let flag = ran.clone();
    let refused = pool.spawn(move || {
        let _value = value;
        flag.store(true, Ordering::SeqCst);
    });
    assert!(weak.upgrade().is_none(), "dropped by the submit itself");
    assert!(matches!(refused.wait(), Err(TaskError::Rejected(SubmitError::ShutDown))));
    let (value, flag) = (Arc::new(()), ran.clone());
    let weak = Arc::downgrade(&value);
    let refused = pool.spawn_async(async move {
        let _value = value;
        flag.store(true, Ordering::SeqCst);
    });
    assert!(weak.upgrade().is_none());
    assert!(matches!(refused.wait(), Err(TaskError::Rejected(SubmitError::ShutDown))));
    assert!(!ran.load(Ordering::SeqCst));
}

fn closures_and_futures_run() {
    let pool = pool(2);
    for waiting in Waiting::BOTH {
        assert_eq!(waiting.outcome(pool.spawn(|| 1)).unwrap(), 1);
        assert_eq!(waiting.outcome(pool.spawn_async(async { 2 })).unwrap(), 2);
        let error = waiting.outcome(pool.spawn_async(async { panic!("in a future") })).unwrap_err();
        assert!(error.to_string().ends_with("in a future"), "{error}");
        let named = TaskOptions::new().name("a closure");
        let task = pool.spawn_with(|| context().name().unwrap().into_owned(), named);
        assert_eq!(task.name(), "a closure");
        assert_eq!(waiting.outcome(task).unwrap(), "a closure");
    }
    assert!(pool.spawn(|| ()).name().contains("closures_and_futures_run"), "the type of the closure");
}

fn futures_run_on_a_runtime_of_the_pool() {
    let pool = ThreadPool::builder().workers(1).name_prefix("own").build().unwrap();
    // No runtime around: tokio's timers and sockets work all the same.
    let task = pool.spawn_async(async {
        tokio::time::sleep(millis(10)).await;
        tokio::net::UnixStream::pair().unwrap();
        std::thread::current().name().map(str::to_owned)
    });
    assert_eq!(task.wait().unwrap().as_deref(), Some("own-async"));
    // A thousand that wait take no worker.
    let token = CancellationToken::new();
    let tasks: Vec<_> = (0..1_000)
        .map(|n| {
            let token = token.clone();
            pool.spawn_async(async move {
                token.cancelled().await;
                n
            })
        })
        .collect();
    assert_eq!(pool.spawn(|| 5).wait().unwrap(), 5);
    token.cancel();
    let sum: u32 = as_completed(tasks).blocking().map(Result::unwrap).sum();
    assert_eq!(sum, 499_500);
}

fn async_limit_is_kept() {
    let pool = ThreadPool::builder().workers(1).async_limit(2).async_threads(2).build().unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (running, most) = (running.clone(), most.clone());
            pool.spawn_async(async move {
                let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(millis(2)).await;
                running.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    assert!(tasks.into_iter().all(|task| task.wait().is_ok()));
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

fn retries_of_a_closure_are_refused() {
    let pool = pool(1);
    let ran = Arc::new(AtomicBool::new(false));
    let flag = ran.clone();
    let task = pool.spawn_with(move || flag.store(true, Ordering::SeqCst), TaskOptions::new().retries(1));
    assert!(task.wait().is_err());
    assert!(!ran.load(Ordering::SeqCst));
}

fn error_of_an_initializer_breaks_the_pool() {
    let pool = ThreadPool::builder().workers(1).initializer(|_| Err("no licence")).build().unwrap();
    for _ in 0..2 {
        match pool.spawn(|| 1).wait() {
            Err(TaskError::Rejected(SubmitError::Broken(reason))) => {
                assert!(reason.contains("initialiser") && reason.contains("no licence"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    match pool.spawn_async(async { 1 }).wait() {
        Err(TaskError::Rejected(SubmitError::Broken(_))) => {}
        other => panic!("{other:?}"),
    }
}

fn callbacks_run_on_the_thread_that_decides() {
    let pool = ThreadPool::builder().workers(1).name_prefix("own").build().unwrap();
    let (sender, threads) = mpsc::channel();
    let note = || {
        let sender = sender.clone();
        move |_: &Result<(), TaskError>| {
            let name = std::thread::current().name().map(str::to_owned);
            sender.send((std::thread::current().id(), name)).unwrap();
        }
    };
    let (door, inner) = (Door::default(), Door::default());
    let task = pool.spawn({
        let door = door.clone();
        move || door.pass()
    });
    task.on_done(note());
    door.open();
    task.wait().unwrap();
    assert_eq!(threads.recv().unwrap().1.as_deref(), Some("own-0"), "the worker");

    let task = pool.spawn({
        let inner = inner.clone();
        move || inner.pass()
    });
    inner.wait_for_arrivals(1);
    task.on_done(note());
    assert!(task.cancel());
    assert_eq!(threads.try_recv().unwrap().0, std::thread::current().id(), "whoever cancels");

    let late = pool.spawn_with(|| (), TaskOptions::new().deadline(Instant::now() + millis(20)));
    late.on_done(note());
    assert!(matches!(late.wait(), Err(TaskError::DeadlineExceeded)));
    assert_eq!(threads.recv().unwrap().1.as_deref(), Some("own-clock"), "the clock of the pool");
    inner.open();
}

fn wait_inside_a_task_grows_the_pool() {
    for workers in [1, 2] {
        let pool = pool(workers);
        fn fibonacci(pool: &ThreadPool, n: u64) -> u64 {
            if n < 2 {
                return n;
            }
            let (a, b) = (pool.clone(), pool.clone());
            let first = pool.spawn(move || fibonacci(&a, n - 1));
            let second = pool.spawn(move || fibonacci(&b, n - 2));
            first.wait().unwrap() + second.wait().unwrap()
        }
        let inner = pool.clone();
        assert_eq!(pool.spawn(move || fibonacci(&inner, 8)).wait().unwrap(), 21);
    }
}

fn wait_inside_a_task_grows_the_pool_for_as_long_only() {
    let pool = pool(1);
    let door = Door::default();
    let (inner, gate) = (pool.clone(), door.clone());
    let outer = pool.spawn(move || {
        inner
            .spawn(move || {
                gate.pass();
                5
            })
            .wait()
            .unwrap()
    });
    door.wait_for_arrivals(1);
    assert_eq!(pool.stats().workers.len(), 2, "one more while one waits");
    let queued = pool.spawn(|| 6);
    assert_eq!(queued.state(), TaskState::Queued, "one more, and not two");
    door.open();
    assert_eq!((outer.wait().unwrap(), queued.wait().unwrap()), (5, 6));
    // Back to its size: two tasks that meet would need two workers.
    pool.spawn(|| ()).wait().unwrap();
    assert!(eventually(seconds(5), || {
        pool.spawn(|| ()).wait().unwrap();
        pool.stats().workers.len() == 1
    }));
}

fn wait_inside_a_task_has_a_limit_that_says_so() {
    let pool = ThreadPool::builder().workers(1).stack_size(256 * 1024).build().unwrap();
    /// Each waits for the next, which needs a worker more.
    fn nest(pool: &ThreadPool, depth: usize) -> Result<usize, TaskError> {
        if depth > MAX_EXTRA_WORKERS + 10 {
            return Ok(depth);
        }
        let inner = pool.clone();
        pool.spawn(move || nest(&inner, depth + 1)).wait()?
    }
    let inner = pool.clone();
    let error = pool.spawn(move || nest(&inner, 1)).wait().unwrap().unwrap_err();
    assert!(matches!(error, TaskError::Panicked(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("blocking wait inside a task") && text.contains(&MAX_EXTRA_WORKERS.to_string()), "{text}");
    assert_eq!(pool.spawn(|| 3).wait().unwrap(), 3, "the pool goes on");
    within(seconds(10), || pool.shutdown(Shutdown::Drain).wait());
}

fn every_wait_inside_a_task_grows_the_pool() {
    let pool = pool(1);
    let run = |wait: fn(&ThreadPool) -> u64| {
        let inner = pool.clone();
        pool.spawn(move || wait(&inner)).wait().unwrap()
    };
    assert_eq!(run(|pool| pool.submit(double { n: 1 }).wait_timeout(seconds(30)).unwrap().unwrap()), 2);
    assert_eq!(run(|pool| as_completed([pool.submit(double { n: 2 })]).blocking().map(Result::unwrap).sum()), 4);
    let waited = run(|pool| futures_ext::wait([pool.submit(double { n: 3 })], All, None).blocking().done.len() as u64);
    assert_eq!(waited, 1);
    assert_eq!(run(|pool| pool.map([double { n: 4 }]).blocking().map(Result::unwrap).sum()), 8);
    assert_eq!(run(|pool| futures_ext::block_on(pool.submit(double { n: 5 })).unwrap()), 10);
}

fn blocking_wait_in_an_asynchronous_task_panics() {
    let pool = pool(1);
    let door = Door::default();
    let (inner, gate) = (pool.clone(), door.clone());
    let error = pool.spawn_async(async move { inner.spawn(move || gate.pass()).wait() }).wait().unwrap_err();
    door.open();
    assert!(error.to_string().contains("use .await"), "{error}");
    assert_eq!(pool.spawn_async(async { 1 }).wait().unwrap(), 1, "the asynchronous side goes on");
}

fn awaiting_in_an_asynchronous_task_works() {
    let pool = pool(1);
    let inner = pool.clone();
    let sum = pool.spawn_async(async move {
        let (a, b) = (inner.spawn(|| 1), inner.spawn_async(async { 2 }));
        a.await.unwrap() + b.await.unwrap()
    });
    assert_eq!(sum.wait().unwrap(), 3);
}

const MODES: [Shutdown; 3] = [Shutdown::Drain, Shutdown::CancelQueued, Shutdown::Now];

fn shutdown_in_a_task_does_not_hang() {
    for mode in MODES {
        for awaited in [false, true] {
            let pool = pool(1);
            let (inner, door) = (pool.clone(), Door::default());
            let gate = door.clone();
            let (sender, returned) = mpsc::channel();
            let task = pool.spawn(move || {
                gate.pass();
                let terminated = inner.shutdown(mode);
                if awaited {
                    runtime().block_on(terminated);
                } else {
                    terminated.wait();
                }
                sender.send(()).unwrap();
                7
            });
            let queued = pool.spawn(|| 8);
            door.open();
            returned.recv_timeout(seconds(10)).expect("the shutdown in the task returns");
            match task.wait() {
                Ok(value) => assert!(value == 7 && mode != Shutdown::Now),
                Err(error) => assert!(error.is_cancelled() && mode == Shutdown::Now),
            }
            match queued.wait() {
                Ok(value) => assert!(value == 8 && mode == Shutdown::Drain),
                Err(error) => assert!(error.is_cancelled() && mode != Shutdown::Drain),
            }
            within(seconds(5), || pool.shutdown(Shutdown::Drain).wait());
            assert!(matches!(pool.spawn(|| 1).wait(), Err(TaskError::Rejected(SubmitError::ShutDown))));
        }
    }
}

fn shutdown_in_an_asynchronous_task_does_not_hang() {
    for mode in MODES {
        for threads in [1, 2] {
            let pool = ThreadPool::builder().workers(1).async_threads(threads).build().unwrap();
            let inner = pool.clone();
            let (sender, returned) = mpsc::channel();
            let task = pool.spawn_async(async move {
                inner.shutdown(mode).await;
                inner.shutdown(mode).wait();
                sender.send(()).unwrap();
                7
            });
            returned.recv_timeout(seconds(10)).expect("the shutdown in the task returns");
            assert_eq!(task.wait().is_ok(), mode != Shutdown::Now);
            within(seconds(5), || pool.shutdown(Shutdown::Drain).wait());
        }
    }
}

fn dropping_the_pool_in_a_task_does_not_hang() {
    let prefix = own_prefix();
    for asynchronous in [false, true] {
        let pool = ThreadPool::builder().workers(1).name_prefix(prefix.clone()).build().unwrap();
        let door = Door::default();
        let (inner, gate) = (pool.clone(), door.clone());
        let last = move || {
            gate.pass();
            drop(inner);
            7
        };
        let task = if asynchronous { pool.spawn_async(async { last() }) } else { pool.spawn(last) };
        let queued = pool.spawn(|| 8);
        drop(pool);
        door.open();
        assert_eq!((task.wait().unwrap(), queued.wait().unwrap()), (7, 8));
        assert!(eventually(seconds(5), || threads_called(&prefix).is_empty()), "{:?}", threads_called(&prefix));
    }
}

fn now_does_not_wait_for_a_closure_that_overstays() {
    let (pool, door, busy) = held();
    within(seconds(1), || pool.shutdown(Shutdown::Now).wait());
    assert!(busy.wait().unwrap_err().is_cancelled());
    door.open();
}

fn panic_in_a_drop_does_not_kill_the_worker() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }
    let pool = pool(1);
    // As a value that nobody reads, as an argument of a queued task that is cancelled, and as the payload of a panic.
    // (Whoever is the last owner of a value drops it; for the worker to be that, the future must have gone before.)
    let detached = Door::default();
    let gate = detached.clone();
    pool.spawn(move || {
        gate.pass();
        Bad
    })
    .detach();
    detached.open();
    let (held_pool, door, busy) = held();
    let bad = Bad;
    let queued = held_pool.spawn(move || {
        let _bad = &bad;
    });
    assert!(queued.cancel());
    assert!(queued.wait().unwrap_err().is_cancelled());
    door.open();
    assert_eq!(busy.wait().unwrap(), 7);
    let error = pool.spawn(|| std::panic::panic_any(Bad)).wait().unwrap_err();
    assert!(matches!(error, TaskError::Panicked(_)));
    assert_eq!(pool.spawn(|| 4).wait().unwrap(), 4);
    assert_eq!(pool.stats().workers.len(), 1);
    assert_eq!(held_pool.spawn(|| 4).wait().unwrap(), 4);
}

/// A waiter may let go of its value just when the worker, which has nothing to do, is about to clear it away. The moment is
/// short, so it is tried often, at ever other distances from the end of the task.
fn worker_that_drops_a_late_value_can_be_woken() {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            (0..200).for_each(|_| std::hint::spin_loop());
        }
    }
    let pool = pool(1);
    for turn in 0..4_000_u32 {
        let task = pool.spawn(|| Slow);
        while !task.is_done() {
            std::hint::spin_loop();
        }
        (0..turn % 64).for_each(|_| std::hint::spin_loop());
        drop(task);
        if turn % 8 == 0 {
            // Now and then it lies down before the next task comes.
            std::thread::sleep(Duration::from_micros(200));
        }
        assert!(pool.spawn(|| ()).wait_timeout(seconds(20)).is_ok(), "turn {turn}");
    }
}

fn wait_all_keeps_the_order_and_the_failures() {
    let pool = pool(2);
    for waiting in Waiting::BOTH {
        // More than it waits for at once.
        let tasks: Vec<_> = (0..10_000_u64)
            .map(|n| {
                pool.spawn(move || {
                    assert_ne!(n, 7, "not this one");
                    n
                })
            })
            .collect();
        tasks[9_999].cancel();
        let all = wait_all(tasks);
        let outcomes = if waiting == Waiting::Awaiting { runtime().block_on(all) } else { all.wait() };
        assert_eq!(outcomes.len(), 10_000);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(value) => assert!(value == n as u64 && n != 7),
                Err(TaskError::Panicked(_)) => assert_eq!(n, 7),
                Err(error) => assert!(n == 9_999 && error.is_cancelled(), "{n}: {error}"),
            }
        }
    }
    assert!(wait_all(Vec::<TaskFuture<()>>::new()).wait().is_empty());
    // In whatever order they end.
    let (completers, tasks): (Vec<Completer<usize>>, Vec<_>) = (0..10_000).map(|_| TaskFuture::pair()).unzip();
    let completing = std::thread::spawn(move || {
        let mut rest: Vec<_> = completers.into_iter().enumerate().collect();
        while !rest.is_empty() {
            let (n, completer) = rest.swap_remove(rest.len() / 2);
            completer.complete(Ok(n)).unwrap();
        }
    });
    assert!(wait_all(tasks).wait().into_iter().map(Result::unwrap).eq(0..10_000));
    completing.join().unwrap();
}

fn chunks_of_a_map_are_chosen_by_time() {
    let pool = pool(2);
    // What takes no time travels together,
    let before = pool.stats().submitted;
    let results: Vec<u64> = pool.map((0..20_000).map(|n| double { n })).blocking().map(Result::unwrap).collect();
    assert!(results.into_iter().eq((0..20_000).map(|n| 2 * n)));
    let submits = pool.stats().submitted - before;
    assert!(submits < 10_000, "{submits} submits of 20,000 elements");
    // what takes longer than a chunk should doesn't,
    let before = pool.stats().submitted;
    assert_eq!(pool.map((0..100).map(|_| take_time { ms: 1 })).buffer(100).blocking().count(), 100);
    assert_eq!(pool.stats().submitted - before, 100);
    // and neither do elements with options, or if the user says so.
    let before = pool.stats().submitted;
    let named = pool.map((0..2_000).map(|n| double { n })).options(TaskOptions::new().name("twice"));
    assert_eq!(named.blocking().count(), 2_000);
    assert_eq!(pool.map((0..2_000).map(|n| double { n })).chunk_size(1).blocking().count(), 2_000);
    assert_eq!(pool.stats().submitted - before, 4_000);
}

fn chunks_that_a_map_chooses_fail_one_by_one() {
    let pool = pool(2);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcomes: Vec<_> =
        pool.map((0..5_000).map(|n| all_but { n, bad: n / 1_000 * 1_000 + 999 })).blocking().collect();
    std::panic::set_hook(hook);
    assert_eq!(outcomes.len(), 5_000);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(value) => assert!(value == n as u64 && n % 1_000 != 999),
            Err(TaskError::Panicked(_)) => assert_eq!(n % 1_000, 999),
            Err(error) => panic!("{n}: {error}"),
        }
    }
}

fn cancelled_tasks_leave_the_backlog_of_a_stuck_worker() {
    let pool = pool(1);
    let door = Door::default();
    let gate = door.clone();
    let stuck = pool.spawn(move || gate.pass());
    door.wait_for_arrivals(1);
    let kept: Vec<_> = (0..10).map(|n| pool.spawn(move || n)).collect();
    for _ in 0..100_000 {
        assert!(pool.spawn(|| ()).cancel());
    }
    let held = format!("{pool:?}");
    let queued: usize =
        held.split("queued: ").nth(1).and_then(|rest| rest.split([',', ' ']).next()).unwrap().parse().unwrap();
    assert!(queued < 10_000, "{held}");
    assert_eq!(pool.stats().queued, 10);
    door.open();
    stuck.wait().unwrap();
    assert!(wait_all(kept).wait().into_iter().map(Result::unwrap).eq(0..10));
}

fn happens_before() {
    let pool = pool(2);
    for _ in 0..1_000 {
        let (before, during, after) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let shared = Arc::new((before, during, after));
        let (task, callback) = (shared.clone(), shared.clone());
        // Relaxed all along: the order comes from the pool.
        shared.0.store(1, Ordering::Relaxed);
        let future = pool.spawn(move || {
            assert_eq!(task.0.load(Ordering::Relaxed), 1);
            task.1.store(1, Ordering::Relaxed);
        });
        future.on_done(move |_| {
            assert_eq!(callback.1.load(Ordering::Relaxed), 1);
            callback.2.store(1, Ordering::Relaxed);
        });
        future.wait().unwrap();
        assert_eq!(shared.2.load(Ordering::Relaxed), 1);
    }
}

/// The threads of this process whose names begin so: workers, the clock and the asynchronous side.
fn threads_called(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("comm")).ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

fn no_thread_of_the_pool_is_left() {
    let prefix = own_prefix();
    let pool = ThreadPool::builder().workers(2).name_prefix(prefix.clone()).build().unwrap();
    let options = TaskOptions::new().timeout(seconds(100)).deadline(Instant::now() + seconds(100));
    pool.spawn_with(|| (), options).wait().unwrap();
    pool.spawn_async(async { tokio::time::sleep(millis(1)).await }).wait().unwrap();
    pool.shutdown(Shutdown::Drain).wait();
    drop(pool);
    assert!(eventually(seconds(5), || threads_called(&prefix).is_empty()), "{:?}", threads_called(&prefix));
}

fn context_travels_into_threads_and_futures() {
    let pool = pool(1);
    let door = Door::default();
    let gate = door.clone();
    let (sender, seen) = mpsc::channel();
    let task = pool.spawn(move || {
        let context = context();
        let watcher = std::thread::spawn(move || {
            runtime().block_on(context.cancelled());
            sender.send(context.is_cancelled()).unwrap();
        });
        gate.pass();
        watcher.join().unwrap();
    });
    door.wait_for_arrivals(1);
    assert!(task.cancel());
    assert!(seen.recv_timeout(seconds(5)).unwrap(), "although the closure itself is still blocked");
    door.open();

    let (started, starts) = mpsc::channel();
    let (sender, seen) = mpsc::channel();
    let task = pool.spawn_async(async move {
        let context = context();
        tokio::spawn(async move {
            started.send(()).unwrap();
            context.cancelled().await;
            sender.send(context.is_cancelled()).unwrap();
        });
        std::future::pending::<()>().await;
    });
    starts.recv().unwrap();
    assert!(task.cancel());
    assert!(seen.recv_timeout(seconds(5)).unwrap(), "a future that the task has started");
}

fn options_that_cannot_work_are_refused_by_threads() {
    for (built, option) in [
        (ThreadPool::builder().async_limit(0).build(), "async_limit(0)"),
        (ThreadPool::builder().async_threads(0).build(), "async_threads(0)"),
    ] {
        match built {
            Err(BuildError::InvalidOption(text)) => assert!(text.contains(option), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}

fn pool_is_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<ThreadPool>();
    check::<Arc<dyn Executor>>();
    check::<TaskFuture<u32>>();
    check::<polypool::Terminated>();
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    error::<TaskError>();
    error::<SubmitError>();
    error::<BuildError>();
    error::<CodecError>();
    assert!(EXECUTORS.iter().any(|fixture: &&dyn Fixture| fixture.name() == "threads"));
}
