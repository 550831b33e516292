//! Elements of a map on threads that are alone (`chunk_size(1)`): they share an allocation and a place in the backlog
//! with their neighbours, and must not notice. Each test has more elements ahead than that takes.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, OnceLock, mpsc};
use std::task::{Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use integration_tests::waiting::runtime;
use integration_tests::{Row, Suite, eventually, millis, rows, seconds};
use polypool::{
    Context, Executor, ExecutorExt, Map, Priority, Shutdown, Stats, Task, TaskError, TaskFuture, TaskOptions,
    ThreadPool, context,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const ROWS: &[Row<fn()>] = rows![
    an_element_may_wait_for_any_that_is_ahead,
    the_source_may_wait_for_earlier_elements,
    as_many_run_at_once_as_there_are_workers,
    an_element_may_block_on_another_task,
    the_first_outcome_does_not_wait_for_the_others,
    an_awaited_outcome_wakes_its_reader,
    each_element_has_a_context_of_its_own,
    a_context_outlives_its_element,
    one_worker_keeps_the_order_of_all_submits,
    what_is_submitted_between_two_elements_is_not_overtaken,
    an_element_may_wait_for_what_its_source_has_submitted,
    two_maps_take_turns,
    each_read_pulls_exactly_one_more_if_the_user_says_how_many,
    by_default_the_buffer_is_full_after_each_read_and_a_bundle_more_at_most,
    the_buffer_is_full_also_where_bundles_are_given_up,
    a_ready_outcome_waits_for_one_slow_element_of_the_source_at_most,
    an_element_may_wait_for_the_last_one_in_the_buffer,
    all_that_is_ahead_runs_at_once_if_there_are_workers,
    a_bounded_backlog_takes_elements_one_by_one,
    what_has_priority_goes_between_two_elements,
    what_has_priority_does_not_wait_for_an_element_more_where_outcomes_are_dropped,
    each_element_is_counted,
    no_element_is_ever_counted_twice,
    no_element_is_counted_twice_in_a_shutdown,
    what_waits_is_cancelled_one_by_one,
    everything_is_cancelled_at_once,
    an_element_that_overstays_is_stopped_alone,
    a_shutdown_while_elements_are_pulled_refuses_the_rest,
    a_shutdown_at_any_moment_ends_each_element_once,
    a_blocking_waker_holds_up_no_element,
    what_runs_is_told_before_arguments_go,
    arguments_that_panic_as_they_go_harm_nobody,
    a_source_that_panics_takes_nothing_along,
    a_call_that_a_worker_gives_back_keeps_its_turn,
    the_timeout_of_the_map_stops_what_runs_and_drops_what_waits,
    a_dropped_map_still_runs_and_keeps_nothing,
    unread_outcomes_go_with_the_map,
    panics_are_those_of_their_elements,
    a_panic_in_the_drop_of_a_late_value_harms_nobody,
    maps_and_submits_from_many_threads,
];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("bundles").tests(ROWS).run()
}

/// How many elements are ahead by default.
const AHEAD: u64 = polypool::DEFAULT_MAP_BUFFER as u64;

fn pool(workers: usize) -> ThreadPool {
    ThreadPool::builder().workers(workers).build().unwrap()
}

type Script = Box<dyn Fn(u64) -> u64 + Send + Sync>;

/// What the elements of this test do. (Each test has a process of its own.)
static SCRIPT: OnceLock<Script> = OnceLock::new();

#[polypool::task]
fn play(n: u64) -> u64 {
    (SCRIPT.get().expect("a script"))(n)
}

fn script(script: impl Fn(u64) -> u64 + Send + Sync + 'static) {
    assert!(SCRIPT.set(Box::new(script)).is_ok(), "one script a test");
}

/// The elements of this range, each alone.
fn alone(pool: &ThreadPool, range: std::ops::Range<u64>) -> Map<impl Iterator<Item = play> + Unpin + use<>> {
    pool.map(range.map(|n| play { n })).chunk_size(1)
}

/// Something that elements and tests wait for: a number that only grows.
#[derive(Clone, Default)]
struct Stage(Arc<(Mutex<u64>, Condvar)>);

impl Stage {
    fn reach(&self, stage: u64) {
        let mut now = self.0.0.lock().unwrap();
        *now = stage.max(*now);
        self.0.1.notify_all();
    }

    fn wait_for(&self, stage: u64) {
        let mut now = self.0.0.lock().unwrap();
        while *now < stage {
            now = self.0.1.wait(now).unwrap();
        }
    }
}

/// The elements in the order in which they began, where the script keeps it.
static ORDER: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn script_that_keeps_the_order() {
    script(|n| {
        ORDER.lock().unwrap().push(n);
        n
    });
}

/// Keeps a worker busy until stage 1.
fn hold(pool: &ThreadPool) -> (Stage, TaskFuture<()>) {
    let stage = Stage::default();
    let inner = stage.clone();
    (stage, pool.spawn(move || inner.wait_for(1)))
}

/// A script in which element 0 says that it has begun (stage 1), and waits until the test lets it go (stage 2).
fn script_with_a_door() -> Stage {
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        if n == 0 {
            inner.reach(1);
            inner.wait_for(2);
        }
        n
    });
    stage
}

/// Until this element is stopped. (A wait of the library's would make the pool grow.)
fn wait_for_the_end() {
    while !context().is_cancelled() {
        std::thread::sleep(millis(1));
    }
}

fn an_element_may_wait_for_any_that_is_ahead() {
    let stage = Stage::default();
    script(move |n| {
        match n {
            0 => stage.wait_for(1),
            // In the same bundle, in the next, and as far ahead as there is anything.
            1 => stage.wait_for(2),
            2 => stage.wait_for(3),
            30 => stage.reach(1),
            31 => stage.wait_for(2),
            100 => stage.reach(2),
            _ if n == AHEAD - 1 => stage.reach(3),
            _ => {}
        }
        n
    });
    let outcomes = alone(&pool(5), 0..2_000).blocking().map(Result::unwrap);
    assert!(outcomes.eq(0..2_000));
}

fn the_source_may_wait_for_earlier_elements() {
    let (ran, has_run) = mpsc::channel();
    let ran = Mutex::new(ran);
    script(move |n| {
        ran.lock().unwrap().send(n).unwrap();
        n
    });
    let mut next = 0;
    let source = std::iter::from_fn(move || {
        if next > 0 {
            // Has the one before run? Nobody else would publish it while the source is being asked.
            assert_eq!(has_run.recv_timeout(seconds(30)).expect("the element before has not run"), next - 1);
        }
        next += 1;
        (next <= 200).then(|| play { n: next - 1 })
    });
    let pool = pool(2);
    assert!(pool.map(source).chunk_size(1).blocking().map(Result::unwrap).eq(0..200));
}

fn as_many_run_at_once_as_there_are_workers() {
    let meeting = Barrier::new(8);
    script(move |n| {
        if n % 100 < 8 {
            meeting.wait();
        }
        n
    });
    let pool = pool(8);
    for _ in 0..20 {
        assert!(alone(&pool, 0..300).blocking().map(Result::unwrap).eq(0..300));
    }
}

fn an_element_may_block_on_another_task() {
    let pool = pool(1);
    let inner = pool.clone();
    script(move |n| if n % 50 == 7 { inner.spawn(move || n).wait().unwrap() } else { n });
    assert!(alone(&pool, 0..500).blocking().map(Result::unwrap).eq(0..500));
    // A map inside of a task of the same pool, which has one worker.
    let inner = pool.clone();
    let sum = pool.spawn(move || alone(&inner, 0..200).blocking().map(Result::unwrap).sum::<u64>());
    assert_eq!(sum.wait().unwrap(), (0..200).sum::<u64>());
}

fn the_first_outcome_does_not_wait_for_the_others() {
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        inner.wait_for(n);
        n
    });
    // The next element begins only when the outcome of the one before has been read.
    let pool = pool(2);
    for (n, outcome) in alone(&pool, 0..200).blocking().enumerate() {
        assert_eq!(outcome.unwrap(), n as u64);
        stage.reach(n as u64 + 1);
    }
}

fn an_awaited_outcome_wakes_its_reader() {
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        inner.wait_for(n);
        n
    });
    let pool = pool(2);
    runtime().block_on(async {
        let mut outcomes = alone(&pool, 0..200);
        for n in 0..200 {
            let later = stage.clone();
            let reach = std::thread::spawn(move || later.reach(n));
            assert_eq!(outcomes.next().await.unwrap().unwrap(), n);
            reach.join().unwrap();
        }
        assert!(outcomes.next().await.is_none());
    });
}

fn each_element_has_a_context_of_its_own() {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    script(|n| {
        let context = context();
        assert!(
            !context.is_cancelled()
                && context.attempt() == 0
                && context.name().is_some_and(|name| name.ends_with("play"))
        );
        context.report_progress(1, 2);
        SEEN.lock().unwrap().push(context.id().unwrap().to_string());
        n
    });
    let pool = pool(3);
    assert_eq!(alone(&pool, 0..1_000).blocking().filter(Result::is_ok).count(), 1_000);
    let other = pool.spawn(|| context().id().unwrap()).wait().unwrap();
    let mut seen = std::mem::take(&mut *SEEN.lock().unwrap());
    seen.push(other.to_string());
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>().len(), 1_001);
}

fn a_context_outlives_its_element() {
    static CONTEXTS: Mutex<Vec<Context>> = Mutex::new(Vec::new());
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        if n < 3 {
            CONTEXTS.lock().unwrap().push(context());
            inner.reach(n + 1);
        }
        if n == 2 {
            inner.wait_for(10);
        }
        n
    });
    let pool = pool(1);
    let map = alone(&pool, 0..100).start();
    stage.wait_for(3);
    let contexts = std::mem::take(&mut *CONTEXTS.lock().unwrap());
    assert_eq!(contexts.iter().map(Context::is_cancelled).collect::<Vec<_>>(), [true, true, false]);
    runtime().block_on(async {
        contexts[0].cancelled().await;
        let mut last = Box::pin(contexts[2].cancelled());
        assert!(futures_util::poll!(&mut last).is_pending());
        stage.reach(10);
        last.await;
    });
    assert_eq!(map.blocking().count(), 100);
}

fn one_worker_keeps_the_order_of_all_submits() {
    script_that_keeps_the_order();
    let pool = pool(1);
    let (stage, held) = hold(&pool);
    let mut expected: Vec<u64> = Vec::new();
    let mut maps = Vec::new();
    let mut singles: Vec<TaskFuture<u64>> = Vec::new();
    for round in 0..3 {
        let from = round * 10_000;
        maps.push(alone(&pool, from..from + 700).start());
        expected.extend(from..from + 700);
        singles.push(pool.submit(play { n: from + 5_000 }));
        expected.push(from + 5_000);
    }
    stage.reach(1);
    held.wait().unwrap();
    let outcomes: usize = maps.into_iter().map(|map| map.blocking().count()).sum();
    assert!(outcomes == 2_100 && singles.into_iter().all(|single| single.wait().is_ok()));
    assert_eq!(*ORDER.lock().unwrap(), expected);
}

fn what_is_submitted_between_two_elements_is_not_overtaken() {
    script_that_keeps_the_order();
    let pool = pool(1);
    let (stage, held) = hold(&pool);
    let (other, singles) = (pool.clone(), Arc::new(Mutex::new(Vec::new())));
    let inner = singles.clone();
    let source = (0..200).map(move |n| {
        if n % 40 == 10 {
            inner.lock().unwrap().push(other.submit(play { n: 1_000 + n }));
        }
        play { n }
    });
    let map = pool.map(source).chunk_size(1).start();
    stage.reach(1);
    held.wait().unwrap();
    assert_eq!(map.blocking().count(), 200);
    assert!(singles.lock().unwrap().drain(..).all(|single| single.wait().is_ok()));
    let expected = (0..200).flat_map(|n| [(n % 40 == 10).then_some(1_000 + n), Some(n)]).flatten();
    assert_eq!(*ORDER.lock().unwrap(), expected.collect::<Vec<u64>>());
}

fn an_element_may_wait_for_what_its_source_has_submitted() {
    const ELEMENTS: u64 = 300;
    let (send, receive): (Vec<_>, Vec<_>) = (0..ELEMENTS).map(|_| mpsc::channel::<u64>()).unzip();
    let receive: Vec<_> = receive.into_iter().map(Mutex::new).collect();
    script(move |n| receive[n as usize].lock().unwrap().recv().unwrap());
    let pool = pool(1);
    let other = pool.clone();
    let source = send.into_iter().zip(0..).map(move |(send, n)| {
        // One of them, some of them or all of them, so that bundles of all lengths are cut off.
        if n < 20 || n % 7 == 0 {
            drop(other.spawn(move || send.send(n).unwrap()));
        } else {
            send.send(n).unwrap();
        }
        play { n }
    });
    assert!(pool.map(source).chunk_size(1).blocking().map(Result::unwrap).eq(0..ELEMENTS));
}

fn two_maps_take_turns() {
    script_that_keeps_the_order();
    let pool = pool(1);
    let (stage, held) = hold(&pool);
    // Each pull of the outer map pulls some of the inner one.
    let mut even = alone(&pool, 0..1_000);
    let inner = pool.clone();
    let (send, receive) = mpsc::channel();
    let source = (2_000..2_200).map(move |n| {
        if n == 2_100 {
            even = std::mem::replace(&mut even, alone(&inner, 0..0)).start();
        } else if n == 2_150 {
            send.send(std::mem::replace(&mut even, alone(&inner, 0..0))).unwrap();
        }
        play { n }
    });
    let odd = pool.map(source).chunk_size(1).start();
    let even = receive.recv().unwrap();
    stage.reach(1);
    held.wait().unwrap();
    assert_eq!((even.blocking().count(), odd.blocking().count()), (1_000, 200));
    let expected: Vec<u64> = (2_000..2_100).chain(0..1_000).chain(2_100..2_200).collect();
    assert_eq!(*ORDER.lock().unwrap(), expected);
}

fn each_read_pulls_exactly_one_more_if_the_user_says_how_many() {
    static PULLED: AtomicUsize = AtomicUsize::new(0);
    script(|n| n);
    let pool = pool(2);
    let source = (0..).map(|n| {
        PULLED.fetch_add(1, Ordering::SeqCst);
        play { n }
    });
    let map = pool.map(source).chunk_size(1).buffer(200).start();
    assert_eq!(PULLED.load(Ordering::SeqCst), 200);
    for (n, outcome) in map.blocking().take(1_000).enumerate() {
        assert_eq!(outcome.unwrap(), n as u64);
        assert_eq!(PULLED.load(Ordering::SeqCst), 201 + n);
    }
}

fn by_default_the_buffer_is_full_after_each_read_and_a_bundle_more_at_most() {
    static PULLED: AtomicUsize = AtomicUsize::new(0);
    script(|n| n);
    let pool = pool(2);
    let source = (0..).map(|n| {
        PULLED.fetch_add(1, Ordering::SeqCst);
        play { n }
    });
    let map = pool.map(source).chunk_size(1).start();
    assert_eq!(PULLED.load(Ordering::SeqCst) as u64, AHEAD);
    for (n, outcome) in (0..10_000).zip(map.blocking()) {
        assert_eq!(outcome.unwrap(), n);
        let ahead = PULLED.load(Ordering::SeqCst) as u64 - (n + 1);
        assert!((AHEAD..=AHEAD + 64).contains(&ahead), "{ahead} are ahead after element {n}");
    }
}

fn a_ready_outcome_waits_for_one_slow_element_of_the_source_at_most() {
    static PULLED: AtomicU64 = AtomicU64::new(0);
    script(|n| n);
    let pool = pool(2);
    let source = (0..).map(|n| {
        if PULLED.fetch_add(1, Ordering::SeqCst) >= AHEAD {
            // Slower than any burst.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_micros(20) {
                std::hint::spin_loop();
            }
        }
        play { n }
    });
    let mut map = pool.map(source).chunk_size(1).start();
    assert!(eventually(seconds(30), || pool.stats().completed >= AHEAD));
    for n in 0..AHEAD {
        let next = map.poll_next_unpin(&mut std::task::Context::from_waker(Waker::noop()));
        assert!(matches!(next, Poll::Ready(Some(Ok(value))) if value == n), "{next:?}");
        assert_eq!(PULLED.load(Ordering::SeqCst), AHEAD + n + 1);
    }
}

fn the_buffer_is_full_also_where_bundles_are_given_up() {
    let stage = Stage::default();
    script(move |n| {
        match n {
            8 => stage.wait_for(8 + AHEAD - 1),
            _ => stage.reach(n),
        }
        n
    });
    let pool = pool(2);
    let other = pool.clone();
    let source = (0..3 * AHEAD).map(move |n| {
        if n >= AHEAD {
            // No element after it may go into the bundle before it.
            other.spawn(|| ()).detach();
        }
        play { n }
    });
    let map = pool.map(source).chunk_size(1);
    assert!(map.blocking().map(Result::unwrap).eq(0..3 * AHEAD));
}

fn an_element_may_wait_for_the_last_one_in_the_buffer() {
    let stage = Stage::default();
    script(move |n| {
        // When this one is awaited, those before have been read, and so many more have been pulled.
        if n % 150 == 10 {
            stage.wait_for(n + 127);
        } else if n % 150 == 137 {
            stage.reach(n);
        }
        n
    });
    let pool = pool(2);
    let map = pool.map((0..1_500).map(|n| play { n })).chunk_size(1).buffer(128);
    assert!(map.blocking().map(Result::unwrap).eq(0..1_500));
}

fn all_that_is_ahead_runs_at_once_if_there_are_workers() {
    let meeting = Barrier::new(128);
    script(move |n| {
        if n < 128 {
            meeting.wait();
        }
        n
    });
    let pool = pool(140);
    let map = pool.map((0..300).map(|n| play { n })).chunk_size(1).buffer(128);
    assert!(map.blocking().map(Result::unwrap).eq(0..300));
}

fn a_bounded_backlog_takes_elements_one_by_one() {
    script(|n| n);
    let pool = ThreadPool::builder().workers(2).backlog(3).build().unwrap();
    assert!(alone(&pool, 0..2_000).blocking().map(Result::unwrap).eq(0..2_000));
    assert!(eventually(seconds(30), || numbers(&pool.stats()) == [2_000, 0, 0, 2_000, 0]), "{:?}", pool.stats());
}

fn what_has_priority_goes_between_two_elements() {
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        ORDER.lock().unwrap().push(n);
        if n == 5 {
            inner.reach(1);
            inner.wait_for(2);
        }
        n
    });
    let pool = pool(1);
    let map = alone(&pool, 0..200).start();
    stage.wait_for(1);
    let soon = [1_000, 1_001].map(|n| pool.submit_with(play { n }, TaskOptions::new().priority(Priority::High)));
    let late = pool.submit_with(play { n: 2_000 }, TaskOptions::new().priority(Priority::Low));
    stage.reach(2);
    assert_eq!(map.blocking().count(), 200);
    assert!(soon.into_iter().chain([late]).all(|task| task.wait().is_ok()));
    let expected: Vec<u64> = (0..6).chain([1_000, 1_001]).chain(6..200).chain([2_000]).collect();
    assert_eq!(*ORDER.lock().unwrap(), expected);
}

/// A value whose end, if its number is 0, says that it has begun (stage 3), and waits until the test lets it go (stage 4).
#[derive(Serialize, Deserialize)]
struct Slow(u64);

static END_OF_SLOW: OnceLock<Stage> = OnceLock::new();

impl Drop for Slow {
    fn drop(&mut self) {
        if let (0, Some(stage)) = (self.0, END_OF_SLOW.get()) {
            stage.reach(3);
            stage.wait_for(4);
        }
    }
}

#[polypool::task]
fn make_slow(n: u64) -> Slow {
    ORDER.lock().unwrap().push(n);
    play(n);
    Slow(n)
}

fn what_has_priority_does_not_wait_for_an_element_more_where_outcomes_are_dropped() {
    let stage = script_with_a_door();
    END_OF_SLOW.get_or_init(|| stage.clone());
    let pool = pool(1);
    let map = pool.map((0..100).map(|n| make_slow { n })).chunk_size(1).start();
    stage.wait_for(1);
    drop(map);
    stage.reach(2);
    stage.wait_for(3);
    let first = pool.submit_with(make_slow { n: 1_000 }, TaskOptions::new().priority(Priority::High));
    stage.reach(4);
    first.wait().unwrap();
    assert!(eventually(seconds(30), || pool.stats().completed == 101), "{:?}", pool.stats());
    let expected: Vec<u64> = [0, 1_000].into_iter().chain(1..100).collect();
    assert_eq!(*ORDER.lock().unwrap(), expected);
}

fn numbers(stats: &Stats) -> [u64; 5] {
    [stats.submitted, stats.queued as u64, stats.running as u64, stats.completed, stats.skipped]
}

fn each_element_is_counted() {
    let stage = script_with_a_door();
    let pool = pool(1);
    let map = alone(&pool, 0..200).start();
    stage.wait_for(1);
    assert_eq!(numbers(&pool.stats()), [200, 199, 1, 0, 0]);
    stage.reach(2);
    assert_eq!(map.blocking().count(), 200);
    assert!(eventually(seconds(30), || numbers(&pool.stats()) == [200, 0, 0, 200, 0]), "{:?}", pool.stats());
}

fn no_element_is_ever_counted_twice() {
    script(|n| n);
    let pool = pool(2);
    let is_over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while is_over.load(Ordering::SeqCst) == 0 {
                let stats = pool.stats();
                let [submitted, queued, running, completed, skipped] = numbers(&stats);
                assert!(queued + running + completed + skipped <= submitted, "{stats:?}");
            }
        });
        for n in 0..40 {
            if n % 2 == 0 {
                assert_eq!(alone(&pool, 0..5_000).blocking().count(), 5_000);
            } else {
                drop(alone(&pool, 0..5_000).start());
            }
        }
        is_over.store(1, Ordering::SeqCst);
        looking.join().unwrap();
    });
}

fn no_element_is_counted_twice_in_a_shutdown() {
    script(|n| n);
    for round in 0..150 {
        let pool = pool(2);
        let is_over = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                while is_over.load(Ordering::SeqCst) == 0 {
                    let stats = pool.stats();
                    let [submitted, queued, running, completed, skipped] = numbers(&stats);
                    assert!(queued + running + completed + skipped <= submitted, "{stats:?}");
                }
            });
            let ending = scope.spawn(|| {
                let from = round * 20;
                while pool.stats().completed < from {
                    std::hint::spin_loop();
                }
                pool.shutdown(if round % 2 == 0 { Shutdown::CancelQueued } else { Shutdown::Now })
            });
            assert_eq!(alone(&pool, 0..3_000 + AHEAD).blocking().count() as u64, 3_000 + AHEAD);
            ending.join().unwrap().wait();
            is_over.store(1, Ordering::SeqCst);
            looking.join().unwrap();
        });
        // After a shutdown "now", a pool has ended when what runs has been told.
        let all_are_counted = eventually(seconds(30), || {
            let [submitted, queued, running, completed, skipped] = numbers(&pool.stats());
            (queued, running, completed + skipped) == (0, 0, submitted)
        });
        assert!(all_are_counted, "{:?}", pool.stats());
    }
}

fn is_cancelled(outcome: &Result<u64, TaskError>) -> bool {
    matches!(outcome, Err(TaskError::Cancelled(_)))
}

fn what_waits_is_cancelled_one_by_one() {
    let stage = script_with_a_door();
    let pool = pool(1);
    let map = alone(&pool, 0..200).start();
    stage.wait_for(1);
    let ended = pool.shutdown(Shutdown::CancelQueued);
    assert_eq!(numbers(&pool.stats()), [200, 0, 1, 0, 199]);
    stage.reach(2);
    ended.wait();
    let outcomes: Vec<_> = map.blocking().collect();
    assert_eq!(*outcomes[0].as_ref().unwrap(), 0);
    assert!(outcomes.len() == 200 && outcomes[1..].iter().all(is_cancelled), "{outcomes:?}");
    assert_eq!(numbers(&pool.stats()), [200, 0, 0, 1, 199]);
}

fn everything_is_cancelled_at_once() {
    let stage = script_with_a_door();
    let pool = pool(1);
    let map = alone(&pool, 0..200).start();
    stage.wait_for(1);
    pool.shutdown(Shutdown::Now).wait();
    let outcomes: Vec<_> = map.blocking().collect();
    assert!(outcomes.len() == 200 && outcomes.iter().all(is_cancelled), "{outcomes:?}");
    stage.reach(2);
}

fn an_element_that_overstays_is_stopped_alone() {
    static STOPPED: AtomicUsize = AtomicUsize::new(0);
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        if n == 1 {
            inner.reach(1);
            wait_for_the_end();
            STOPPED.fetch_add(1, Ordering::SeqCst);
        }
        n
    });
    let pool = pool(1);
    let mut map = alone(&pool, 0..200).start().blocking();
    stage.wait_for(1);
    assert_eq!(map.next().unwrap().unwrap(), 0);
    pool.shutdown(Shutdown::Now).wait();
    assert!(eventually(seconds(30), || STOPPED.load(Ordering::SeqCst) == 1));
    let rest: Vec<_> = map.collect();
    assert!(rest.len() == 199 && rest.iter().all(is_cancelled), "{rest:?}");
}

fn a_shutdown_while_elements_are_pulled_refuses_the_rest() {
    let stage = script_with_a_door();
    let pool = pool(1);
    let (inner, door) = (pool.clone(), stage.clone());
    let source = (0..200).map(move |n| {
        if n == 20 {
            door.wait_for(1);
            drop(inner.shutdown(Shutdown::Drain));
            door.reach(2);
        }
        play { n }
    });
    let outcomes: Vec<_> = pool.map(source).chunk_size(1).blocking().collect();
    let (taken, refused) = outcomes.split_at(20);
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
    assert!(refused.len() == 180 && refused.iter().all(|outcome| matches!(outcome, Err(TaskError::Rejected(_)))));
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!(numbers(&pool.stats()), [20, 0, 0, 20, 0]);
}

fn a_shutdown_at_any_moment_ends_each_element_once() {
    script(|n| n);
    for round in 0..600_u64 {
        let pool = pool(1 + round as usize % 3);
        let mode = [Shutdown::Drain, Shutdown::CancelQueued, Shutdown::Now][round as usize / 3 % 3];
        let (other, at) = (pool.clone(), Stage::default());
        let inner = at.clone();
        let ender = std::thread::spawn(move || {
            inner.wait_for(round / 9);
            other.shutdown(mode).wait();
        });
        let source = (0..2_000).map(|n| {
            if n < 1_000 {
                at.reach(n);
            }
            play { n }
        });
        let outcomes: Vec<_> = pool.map(source).chunk_size(1).buffer(128).blocking().collect();
        ender.join().unwrap();
        assert_eq!(outcomes.len(), 2_000);
        let (mut done, mut cancelled, mut refused) = (0, 0, 0);
        for (n, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(value) => done += u64::from(value == n as u64),
                Err(TaskError::Cancelled(_)) => cancelled += 1,
                Err(TaskError::Rejected(_)) => refused += 1,
                Err(error) => panic!("{n}: {error}"),
            }
        }
        assert_eq!(done + cancelled + refused, 2_000, "{mode:?}");
        assert!(mode != Shutdown::Drain || cancelled == 0);
        let settled = || {
            let [submitted, queued, running, completed, skipped] = numbers(&pool.stats());
            // What runs when it is stopped counts as completed, but its outcome is that it was cancelled.
            let is_right = if mode == Shutdown::Now {
                completed >= done && completed + skipped == done + cancelled
            } else {
                (completed, skipped) == (done, cancelled)
            };
            is_right && (submitted, queued, running) == (completed + skipped, 0, 0)
        };
        assert!(eventually(seconds(30), settled), "{mode:?}: {done} {cancelled} {refused} {:?}", pool.stats());
    }
}

/// A waker that lets the other worker go and waits for the second element.
struct Blocking(Stage);

impl Wake for Blocking {
    fn wake(self: Arc<Self>) {
        self.0.reach(3);
        self.0.wait_for(4);
    }
}

fn a_blocking_waker_holds_up_no_element() {
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        match n {
            0 => {
                inner.reach(1);
                inner.wait_for(2);
            }
            1 => inner.reach(4),
            _ => {}
        }
        n
    });
    let pool = pool(2);
    let (inner, has_begun) = (stage.clone(), Stage::default());
    let begins = has_begun.clone();
    let held = pool.spawn(move || {
        begins.reach(1);
        inner.wait_for(3);
    });
    has_begun.wait_for(1);
    let mut map = alone(&pool, 0..200).start();
    stage.wait_for(1);
    let waker = Waker::from(Arc::new(Blocking(stage.clone())));
    assert!(map.poll_next_unpin(&mut std::task::Context::from_waker(&waker)).is_pending());
    stage.reach(2);
    held.wait().unwrap();
    assert!(map.blocking().map(Result::unwrap).eq(0..200));
}

/// An argument that does something as it goes.
struct Parting(u64);

static PART: OnceLock<Script> = OnceLock::new();

impl Drop for Parting {
    fn drop(&mut self) {
        (PART.get().expect("a script"))(self.0);
    }
}

impl Serialize for Parting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Parting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Parting)
    }
}

#[polypool::task]
fn part(parting: Parting) -> u64 {
    play(parting.0)
}

fn what_runs_is_told_before_arguments_go() {
    let stage = Stage::default();
    let (inner, told) = (stage.clone(), stage.clone());
    script(move |n| {
        wait_for_the_end();
        inner.reach(1);
        n
    });
    assert!(
        PART.set(Box::new(move |n| {
            if n > 0 {
                told.wait_for(1);
            }
            n
        }))
        .is_ok()
    );
    let pool = pool(1);
    let map = pool.map((0..200).map(|n| part { parting: Parting(n) })).chunk_size(1);
    let outcomes: Vec<_> = map.timeout(millis(50)).blocking().collect();
    assert!(matches!(&outcomes[..], [Err(TaskError::WaitElapsed(_))]), "{outcomes:?}");
}

fn arguments_that_panic_as_they_go_harm_nobody() {
    let stage = script_with_a_door();
    assert!(PART.set(Box::new(|n| if n % 3 == 1 { panic!("on purpose") } else { n })).is_ok());
    let pool = pool(1);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let map = pool.map((0..200).map(|n| part { parting: Parting(n) })).chunk_size(1).start();
    stage.wait_for(1);
    let ended = pool.shutdown(Shutdown::CancelQueued);
    stage.reach(2);
    ended.wait();
    let outcomes: Vec<_> = map.blocking().collect();
    std::panic::set_hook(hook);
    assert!(outcomes.len() == 200 && outcomes[1..].iter().all(is_cancelled), "{outcomes:?}");
    assert_eq!(numbers(&pool.stats()), [200, 0, 0, 1, 199]);
}

fn a_source_that_panics_takes_nothing_along() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    script(|n| {
        RAN.fetch_add(1, Ordering::SeqCst);
        n
    });
    let pool = pool(2);
    let source = (0..200).map(|n| {
        assert!(n < 100, "on purpose");
        play { n }
    });
    let map = pool.map(source).chunk_size(1);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| map.start())).is_err());
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!(RAN.load(Ordering::SeqCst), 100);
    assert_eq!(numbers(&pool.stats()), [100, 0, 0, 100, 0]);
}

fn a_call_that_a_worker_gives_back_keeps_its_turn() {
    script_that_keeps_the_order();
    let pool = pool(1);
    for _ in 0..300 {
        // A value that is left to its worker goes before the next call is run, which may be given back for that.
        let single = pool.spawn(|| Counted::new(0));
        let map = alone(&pool, 0..100).start();
        while !single.is_done() {
            std::hint::spin_loop();
        }
        drop(single);
        assert!(map.blocking().map(Result::unwrap).eq(0..100));
        assert!(std::mem::take(&mut *ORDER.lock().unwrap()).into_iter().eq(0..100));
    }
    assert!(eventually(seconds(30), || numbers(&pool.stats()) == [30_300, 0, 0, 30_300, 0]), "{:?}", pool.stats());
    assert!(eventually(seconds(30), || LIVE.load(Ordering::SeqCst) == 0));
}

/// How many [`Counted`] there are.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// An argument and a result that is counted.
struct Counted(u64);

impl Counted {
    fn new(n: u64) -> Self {
        LIVE.fetch_add(1, Ordering::SeqCst);
        Counted(n)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        LIVE.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Counted::new)
    }
}

#[polypool::task]
fn hand_back(counted: Counted) -> Counted {
    play(counted.0);
    counted
}

fn hand_back_all(range: std::ops::Range<u64>) -> impl Iterator<Item: Task<Output = Counted>> + Unpin {
    range.map(|n| hand_back { counted: Counted::new(n) })
}

fn the_timeout_of_the_map_stops_what_runs_and_drops_what_waits() {
    static STOPPED: AtomicUsize = AtomicUsize::new(0);
    script(|n| {
        wait_for_the_end();
        STOPPED.fetch_add(1, Ordering::SeqCst);
        n
    });
    let pool = pool(2);
    let outcomes: Vec<_> =
        pool.map(hand_back_all(0..200)).chunk_size(1).timeout(Duration::from_millis(50)).blocking().collect();
    match &outcomes[..] {
        [Err(TaskError::WaitElapsed(unfinished))] => {
            assert_eq!((unfinished.unfinished(), unfinished.total()), (200, 200))
        }
        other => panic!("{} outcomes", other.len()),
    }
    // The arguments of those that waited have gone already; those of the running ones go with them.
    assert!(LIVE.load(Ordering::SeqCst) <= 2);
    assert!(eventually(seconds(30), || LIVE.load(Ordering::SeqCst) == 0));
    assert!(STOPPED.load(Ordering::SeqCst) <= 2, "what waited never ran");
    assert!(eventually(seconds(30), || pool.stats().running == 0));
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.queued), (200, 0));
    assert!(eventually(seconds(30), || pool.stats().completed + pool.stats().skipped == 200), "{:?}", pool.stats());
}

fn a_dropped_map_still_runs_and_keeps_nothing() {
    static RAN: AtomicUsize = AtomicUsize::new(0);
    let stage = Stage::default();
    let inner = stage.clone();
    script(move |n| {
        if n == 10 {
            inner.reach(1);
            inner.wait_for(2);
            assert_eq!(LIVE.load(Ordering::SeqCst), 190, "nobody will read the outcomes that were there");
        }
        if n == 150 {
            assert_eq!(LIVE.load(Ordering::SeqCst), 50, "nor those that have come since");
        }
        RAN.fetch_add(1, Ordering::SeqCst);
        n
    });
    let pool = pool(1);
    let map = pool.map(hand_back_all(0..200)).chunk_size(1).start();
    stage.wait_for(1);
    assert_eq!(LIVE.load(Ordering::SeqCst), 200);
    drop(map);
    stage.reach(2);
    pool.shutdown(Shutdown::Drain).wait();
    assert_eq!((RAN.load(Ordering::SeqCst), LIVE.load(Ordering::SeqCst)), (200, 0));
}

fn unread_outcomes_go_with_the_map() {
    script(|n| n);
    let pool = pool(2);
    let map = pool.map(hand_back_all(0..200)).chunk_size(1).start();
    assert!(eventually(seconds(30), || pool.stats().completed == 200));
    let mut map = map.blocking();
    assert_eq!(map.next().unwrap().unwrap().0, 0);
    assert_eq!(LIVE.load(Ordering::SeqCst), 199);
    drop(map);
    assert_eq!(LIVE.load(Ordering::SeqCst), 0);
}

fn panics_are_those_of_their_elements() {
    script(|n| {
        assert!(n % 7 != 3, "on purpose");
        n
    });
    let pool = pool(2);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcomes: Vec<_> = alone(&pool, 0..2_000).blocking().collect();
    std::panic::set_hook(hook);
    assert_eq!(outcomes.len(), 2_000);
    for (n, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(value) => assert!(value == n as u64 && n % 7 != 3),
            Err(TaskError::Panicked(_)) => assert_eq!(n % 7, 3),
            Err(error) => panic!("{n}: {error}"),
        }
    }
}

/// A result whose end panics.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a value that panics as it goes");
        }
    }
}

impl Serialize for Bomb {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for Bomb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer).map(|()| Bomb)
    }
}

#[polypool::task]
fn make_bomb(n: u64) -> Bomb {
    play(n);
    Bomb
}

fn a_panic_in_the_drop_of_a_late_value_harms_nobody() {
    let stage = script_with_a_door();
    let pool = pool(1);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let map = pool.map((0..100).map(|n| make_bomb { n })).chunk_size(1).start();
    stage.wait_for(1);
    drop(map);
    stage.reach(2);
    let after = pool.spawn(|| 7).wait().unwrap();
    std::panic::set_hook(hook);
    assert_eq!(after, 7);
    assert!(eventually(seconds(30), || pool.stats().completed == 101), "{:?}", pool.stats());
}

fn maps_and_submits_from_many_threads() {
    script(|n| n + 1);
    let pool = ThreadPool::builder().workers(3).build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..30 {
                    let outcomes = alone(pool, 0..1_500).blocking().map(Result::unwrap);
                    if (round + thread) % 3 == 0 {
                        // Left half-way.
                        assert!(outcomes.take(700).eq(1..701));
                    } else {
                        assert!(outcomes.eq(1..1_501));
                    }
                }
            });
            scope.spawn(move || {
                for n in 0..3_000 {
                    assert_eq!(pool.submit(play { n }).wait().unwrap(), n + 1);
                    if n % 100 == 0 {
                        std::thread::sleep(millis(1));
                    }
                }
            });
        }
    });
    pool.shutdown(Shutdown::Drain).wait();
    let [submitted, queued, running, completed, skipped] = numbers(&pool.stats());
    assert_eq!((submitted, queued, running, skipped), (completed, 0, 0, 0));
}
