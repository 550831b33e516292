//! Futures without a pool: the rows that are about the future and its completer alone, and `as_completed` in the large.

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_ext::{Cancellable, CancellationToken, as_completed};
use futures_util::StreamExt;
use integration_tests::waiting::runtime;
use integration_tests::{Row, Suite, Waiting, millis, rows, seconds, within};
use polypool::{AlreadyDone, Completer, Outcome, TaskError, TaskFuture, TaskOptions, TaskState};

const ROWS: &[Row<fn()>] = rows![
    p01_predicates_in_all_five_states,
    p01_debug_names_the_state,
    p02_second_completion_is_refused,
    p03_state_and_outcome_are_read_together,
    p03_done_stays_done,
    p05_cancel_in_every_state,
    p09_callback_sees_each_outcome,
    p10_callback_on_a_finished_future_is_called_at_once,
    p11_panicking_callback_stops_nothing_and_is_reported,
    p12_callbacks_run_in_order_and_once,
    p13_zero_timeout_in_every_state,
    p13_outcome_that_arrives_half_way_ends_the_wait,
    s2_cancel_goes_down_the_tree_only,
    s2_late_children_are_born_cancelled,
    s2_nothing_is_polled_after_the_cancel,
    s2_a_dropped_middle_token_still_conducts,
    abandoned_future_says_so,
    completer_hears_of_a_cancel,
    callback_registered_in_a_callback_is_called,
    as_completed_is_linear_on_a_tokio_worker,
    as_completed_is_linear_when_the_budget_runs_out,
    as_completed_of_finished_futures_polls_each_once,
];

fn main() -> ExitCode {
    polypool::init();
    Suite::new("futures").tests(ROWS).run()
}

/// A failure that nobody cancelled.
fn failure() -> TaskError {
    TaskError::InvalidOption("a failure")
}

type Pair<T> = (Completer<T>, TaskFuture<T>);

fn pending() -> Pair<u32> {
    TaskFuture::pair()
}

fn running() -> Pair<u32> {
    let (completer, future) = TaskFuture::pair();
    assert!(completer.start());
    (completer, future)
}

fn cancelled() -> Pair<u32> {
    let (completer, future) = TaskFuture::pair();
    assert!(future.cancel());
    (completer, future)
}

fn failed() -> Pair<u32> {
    let (completer, future) = running();
    completer.complete(Err(failure())).unwrap();
    (completer, future)
}

fn succeeded() -> Pair<u32> {
    let (completer, future) = running();
    completer.complete(Ok(7)).unwrap();
    (completer, future)
}

fn p01_predicates_in_all_five_states() {
    for ((_completer, future), state, [cancelled, done, running]) in [
        (pending(), TaskState::Queued, [false, false, false]),
        (running(), TaskState::Running, [false, false, true]),
        (cancelled(), TaskState::Cancelled, [true, true, false]),
        (failed(), TaskState::Failed, [false, true, false]),
        (succeeded(), TaskState::Succeeded, [false, true, false]),
    ] {
        assert_eq!(future.state(), state);
        assert_eq!(
            [future.is_cancelled(), future.is_done(), future.is_running()],
            [cancelled, done, running],
            "{state:?}"
        );
        assert_eq!((future.handle().state(), future.handle().is_done(), state.is_done()), (state, done, done));
    }
}

fn p01_debug_names_the_state() {
    /// Can't be printed.
    struct Opaque;
    let (completer, future) = TaskFuture::<Opaque>::pair_with(TaskOptions::new().name("opaque"));
    let shown = || (format!("{future:?}"), format!("{completer:?}"));
    for text in [shown().0, shown().1] {
        assert!(text.contains("Queued") && text.contains("opaque"), "{text}");
    }
    completer.start();
    assert!(shown().0.contains("Running") && shown().1.contains("Running"));
    assert!(completer.complete(Ok(Opaque)).is_ok());
    assert!(shown().0.contains("Succeeded"));
    for ((_completer, future), state) in [(cancelled(), "Cancelled"), (failed(), "Failed")] {
        assert!(format!("{future:?}").contains(state));
    }
    // Neither does the refusal of a second outcome need it.
    let Err(refused) = completer.complete(Ok(Opaque)) else { panic!("a second outcome") };
    assert!(!format!("{refused:?}").is_empty());
}

fn p02_second_completion_is_refused() {
    for waiting in Waiting::BOTH {
        let (completer, future) = succeeded();
        let AlreadyDone(second) = completer.complete(Ok(8)).unwrap_err();
        assert_eq!(second.unwrap(), 8, "what was refused comes back");
        let refused = completer.complete(Err(failure())).unwrap_err();
        assert!(refused.to_string().contains("already"), "{refused}");
        assert!(!completer.start());
        assert_eq!(future.state(), TaskState::Succeeded);
        assert_eq!(waiting.outcome(future).unwrap(), 7);

        let (completer, future) = failed();
        assert!(completer.complete(Ok(8)).is_err());
        assert!(matches!(waiting.outcome(future), Err(TaskError::InvalidOption(_))));

        let (completer, future) = cancelled();
        assert!(completer.complete(Ok(8)).is_err());
        assert!(waiting.outcome(future).unwrap_err().is_cancelled());
    }
}

fn p03_state_and_outcome_are_read_together() {
    const READERS: usize = 4;
    for round in 0..50_u32 {
        let (completer, mut future) = TaskFuture::pair();
        let handle = future.handle();
        let start = Barrier::new(READERS + 2);
        std::thread::scope(|scope| {
            for _ in 0..READERS {
                scope.spawn(|| {
                    start.wait();
                    let mut before = TaskState::Queued;
                    for _ in 0..1_000 {
                        let now = handle.state();
                        let goes_on = match before {
                            TaskState::Queued => true,
                            TaskState::Running => now != TaskState::Queued,
                            // Only one outcome, for ever.
                            done => now == done,
                        };
                        assert!(goes_on, "{before:?} became {now:?}");
                        before = now;
                    }
                });
            }
            // Whoever may read the outcome finds one as soon as "done" is to be seen.
            scope.spawn(|| {
                start.wait();
                let outcome = loop {
                    let was_done = future.is_done();
                    match future.wait_timeout(millis(0)) {
                        Ok(outcome) => break outcome,
                        Err(_) => assert!(!was_done, "done without an outcome"),
                    }
                };
                match outcome {
                    Ok(value) => assert!(round % 2 == 0 && value == round),
                    Err(error) => assert!(round % 2 == 1, "{error}"),
                }
                assert!(matches!(future.wait(), Err(TaskError::OutcomeTaken)), "nor two of them");
            });
            start.wait();
            completer.start();
            let outcome = if round % 2 == 0 { Ok(round) } else { Err(failure()) };
            completer.complete(outcome).unwrap();
        });
    }
}

fn p03_done_stays_done() {
    // A callback that is registered late has the outcome to itself; others must not notice.
    let (_completer, future) = succeeded();
    let handle = future.handle();
    let (inside, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            future.on_done(move |_| {
                inside.send(()).unwrap();
                let _ = left.recv();
            });
        });
        entered.recv().unwrap();
        let seen = (handle.is_done(), handle.state());
        drop(leave);
        assert_eq!(seen, (true, TaskState::Succeeded), "seen by another thread while the callback runs");
    });
}

fn p05_cancel_in_every_state() {
    let (completer, future) = pending();
    assert!(future.cancel(), "pending: yes");
    assert!(future.cancel(), "cancelled: yes again");
    assert!(future.handle().cancel());
    assert!(completer.is_cancelled() && !completer.start());
    assert!(future.wait().unwrap_err().is_cancelled());

    // A running one: yes, because its outcome is "cancelled" from now on.
    let (completer, future) = running();
    assert!(future.cancel());
    assert!(completer.is_cancelled() && completer.complete(Ok(1)).is_err());
    assert!(future.wait().unwrap_err().is_cancelled());

    for ((_completer, future), state) in [(failed(), TaskState::Failed), (succeeded(), TaskState::Succeeded)] {
        assert!(!future.cancel(), "finished: no");
        assert!(!future.handle().cancel());
        assert_eq!(future.state(), state, "and nothing changes");
    }

    // The answer is truthful in a race, too.
    for _ in 0..500 {
        let (completer, future) = running();
        let start = Barrier::new(2);
        let answer = std::thread::scope(|scope| {
            let canceller = scope.spawn(|| {
                start.wait();
                future.cancel()
            });
            start.wait();
            let _ = completer.complete(Ok(1));
            canceller.join().unwrap()
        });
        assert_eq!(answer, future.wait().is_err_and(|error| error.is_cancelled()));
    }
}

fn p09_callback_sees_each_outcome() {
    for (complete, state) in
        [(Some(Ok(7)), TaskState::Succeeded), (Some(Err(failure())), TaskState::Failed), (None, TaskState::Cancelled)]
    {
        let (completer, future) = running();
        let (sender, seen) = mpsc::channel();
        let handle = future.handle();
        future.on_done(move |outcome| {
            let seen = within(millis(200), || (handle.state(), handle.is_done(), handle.cancel()));
            sender.send((outcome.clone(), seen)).unwrap();
        });
        assert!(seen.try_recv().is_err(), "not before it is finished");
        match complete {
            Some(outcome) => completer.complete(outcome).unwrap(),
            None => assert!(future.cancel()),
        }
        let (outcome, seen) = seen.try_recv().expect("it was called before the completion returned");
        assert_eq!(seen, (state, true, state == TaskState::Cancelled));
        let same: Outcome<u32> = future.wait();
        assert_eq!(format!("{same:?}"), format!("{outcome:?}"), "the waiter gets what the callback saw");
    }
}

fn p10_callback_on_a_finished_future_is_called_at_once() {
    for (_completer, future) in [succeeded(), failed(), cancelled()] {
        let called_on = Arc::new(Mutex::new(None));
        let (slot, state) = (called_on.clone(), future.state());
        future.on_done(move |outcome| {
            *slot.lock().unwrap() = Some((std::thread::current().id(), outcome.is_ok()));
        });
        let called = called_on.lock().unwrap().take();
        assert_eq!(called, Some((std::thread::current().id(), state == TaskState::Succeeded)));
        assert_eq!(future.state(), state);
        assert_eq!(future.wait().is_ok(), state == TaskState::Succeeded, "the outcome is still there");
    }
}

fn p11_panicking_callback_stops_nothing_and_is_reported() {
    static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|info| {
        let text = info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned());
        if text.as_deref().is_some_and(|text| text.starts_with("on purpose")) {
            REPORTS.lock().unwrap().push(text.unwrap());
        } else {
            eprintln!("{info}");
        }
    }));
    for (complete, expected) in [(Ok(7), TaskState::Succeeded), (Err(failure()), TaskState::Failed)] {
        let (completer, future) = running();
        let calls = Arc::new(AtomicUsize::new(0));
        let count = || {
            let calls = calls.clone();
            move |_: &Outcome<u32>| {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        future.on_done(count());
        future.on_done(|_| panic!("on purpose, before"));
        future.on_done(count());
        completer.complete(complete).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2, "the later ones run");
        assert_eq!(
            REPORTS.lock().unwrap().drain(..).collect::<Vec<_>>(),
            ["on purpose, before"],
            "reported by the hook"
        );

        future.on_done(|_| panic!("on purpose, late"));
        future.on_done(count());
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        assert_eq!(REPORTS.lock().unwrap().drain(..).collect::<Vec<_>>(), ["on purpose, late"]);
        assert_eq!(future.state(), expected, "the outcome is unchanged");
        assert_eq!(future.wait().is_ok(), expected == TaskState::Succeeded);
    }
}

fn p12_callbacks_run_in_order_and_once() {
    let (completer, future) = running();
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 0..5 {
        let order = order.clone();
        future.on_done(move |_| order.lock().unwrap().push(number));
    }
    completer.complete(Ok(1)).unwrap();
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
    let _ = completer.complete(Ok(2));
    assert_eq!(order.lock().unwrap().len(), 5, "once each");

    let (completer, future) = pending();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    future.on_done(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (0..3).for_each(|_| assert!(future.cancel()));
    // A worker reaches it now.
    assert!(!completer.start());
    assert!(completer.complete(Ok(1)).is_err());
    drop(completer);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

fn p13_zero_timeout_in_every_state() {
    for (_completer, mut future) in [pending(), running()] {
        assert!(future.wait_timeout(millis(0)).is_err());
        let timed = runtime().block_on(async { futures_ext::FutureExt::timeout(&mut future, millis(0)).await });
        assert!(timed.is_err(), "awaited, it says the same");
    }
    let read: fn(TaskFuture<u32>) -> Outcome<u32> = |mut future| future.wait_timeout(millis(0)).unwrap();
    let awaited: fn(TaskFuture<u32>) -> Outcome<u32> =
        |future| runtime().block_on(async { future.timeout(millis(0)).await }).unwrap();
    for read in [read, awaited] {
        assert!(read(cancelled().1).unwrap_err().is_cancelled());
        let (_completer, future) = failed();
        assert!(matches!(read(future), Err(TaskError::InvalidOption(_))));
        assert_eq!(read(succeeded().1).unwrap(), 7);
    }
}

fn p13_outcome_that_arrives_half_way_ends_the_wait() {
    for awaited in [false, true] {
        let (completer, mut future) = running();
        let started = Instant::now();
        let completion = std::thread::spawn(move || {
            std::thread::sleep(millis(50));
            completer.complete(Ok(1)).unwrap();
        });
        let outcome = if awaited {
            runtime().block_on(async { future.timeout(seconds(30)).await })
        } else {
            future.wait_timeout(seconds(30))
        };
        let took = started.elapsed();
        assert_eq!(outcome.unwrap().unwrap(), 1);
        assert!(took >= millis(50) && took < seconds(2), "{took:?}");
        completion.join().unwrap();
    }
    // And one that does not arrive lets the wait last its full time.
    let (completer, mut future) = running();
    let started = Instant::now();
    let elapsed = future.wait_timeout(millis(50)).unwrap_err();
    assert!(started.elapsed() >= millis(50));
    assert_eq!(elapsed.duration(), millis(50));
    completer.complete(Ok(2)).unwrap();
    assert_eq!(future.wait().unwrap(), 2, "the wait ended, not the task");
}

// `futures_ext::FutureExt` is not imported here: its `on_done` takes the future by value, and would hide the one of
// `TaskFuture`.
fn cancellable<F: Future>(future: F, token: CancellationToken) -> Cancellable<F> {
    futures_ext::FutureExt::cancellable(future, token)
}

fn s2_cancel_goes_down_the_tree_only() {
    let root = CancellationToken::new();
    let (left, right) = (root.child_token(), root.child_token());
    let (below_left, below_right) = (left.child_token(), right.child_token());
    let state = || [&root, &left, &right, &below_left, &below_right].map(CancellationToken::is_cancelled);
    left.cancel();
    assert_eq!(state(), [false, true, false, true, false], "down, not up and not sideways");
    root.cancel();
    assert_eq!(state(), [true; 5]);
}

fn s2_late_children_are_born_cancelled() {
    let root = CancellationToken::new();
    root.cancel();
    let late = root.child_token();
    assert!(late.is_cancelled() && late.child_token().is_cancelled());
    assert!(futures_ext::FutureExt::wait(cancellable(std::future::ready(1), late)).is_err());
}

/// Counts how often it is polled; never ready.
struct Polled(Arc<AtomicUsize>);

impl Future for Polled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Poll::Pending
    }
}

fn s2_nothing_is_polled_after_the_cancel() {
    let polls = Arc::new(AtomicUsize::new(0));
    let root = CancellationToken::new();
    let mut running = cancellable(Polled(polls.clone()), root.child_token());
    assert!(futures_ext::FutureExt::wait_timeout(&mut running, millis(1)).is_err());
    let before = polls.load(Ordering::SeqCst);
    assert!(before >= 1);
    root.cancel();
    assert!(futures_ext::FutureExt::wait(running).is_err());
    assert_eq!(polls.load(Ordering::SeqCst), before, "not polled after the cancel");
    assert!(futures_ext::FutureExt::wait(cancellable(Polled(polls.clone()), root.child_token())).is_err());
    assert_eq!(polls.load(Ordering::SeqCst), before, "nor is what starts after it");
}

fn s2_a_dropped_middle_token_still_conducts() {
    let root = CancellationToken::new();
    let middle = root.child_token();
    let (leaf, sibling) = (middle.child_token(), root.child_token());
    drop(middle);
    assert!(!leaf.is_cancelled());
    let polls = Arc::new(AtomicUsize::new(0));
    let mut running = cancellable(Polled(polls.clone()), leaf.clone());
    assert!(futures_ext::FutureExt::wait_timeout(&mut running, millis(1)).is_err());
    leaf.child_token().cancel();
    assert!(!leaf.is_cancelled() && !sibling.is_cancelled() && !root.is_cancelled());
    let before = polls.load(Ordering::SeqCst);
    root.cancel();
    assert!(leaf.is_cancelled() && leaf.child_token().is_cancelled());
    assert!(futures_ext::FutureExt::wait(running).is_err());
    assert_eq!(polls.load(Ordering::SeqCst), before);
}

fn abandoned_future_says_so() {
    let (completer, future) = running();
    drop(completer);
    let error = future.wait().unwrap_err();
    assert!(matches!(error, TaskError::Abandoned), "{error:?}");
}

fn completer_hears_of_a_cancel() {
    let (completer, future) = running();
    let waiter = std::thread::spawn(move || {
        runtime().block_on(completer.cancelled());
        completer.is_cancelled()
    });
    assert!(future.cancel());
    assert!(waiter.join().unwrap());
}

fn callback_registered_in_a_callback_is_called() {
    for late in [false, true] {
        let (completer, future) = running();
        let future = Arc::new(future);
        let called = Arc::new(AtomicBool::new(false));
        let (inner, flag) = (Arc::downgrade(&future), called.clone());
        let register = |future: &TaskFuture<u32>| {
            future.on_done(move |_| {
                let flag = flag.clone();
                inner.upgrade().unwrap().on_done(move |outcome| flag.store(outcome.is_ok(), Ordering::SeqCst));
            });
        };
        if late {
            completer.complete(Ok(1)).unwrap();
            register(&future);
        } else {
            register(&future);
            completer.complete(Ok(1)).unwrap();
        }
        assert!(called.load(Ordering::SeqCst));
    }
}

/// A future of a task that counts its polls, and may take from tokio's cooperative budget, as tokio's own futures do.
struct Counted {
    future: TaskFuture<u32>,
    polls: Arc<AtomicUsize>,
    budgeted: bool,
}

impl Future for Counted {
    type Output = Outcome<u32>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        if !self.budgeted {
            return Pin::new(&mut self.future).poll(cx);
        }
        let budget = std::task::ready!(tokio::task::coop::poll_proceed(cx));
        let poll = Pin::new(&mut self.future).poll(cx);
        if poll.is_ready() {
            budget.made_progress();
        }
        poll
    }
}

/// Collects `count` futures on a tokio worker while others complete them from another thread; the number of polls.
fn polls_for(count: usize, budgeted: bool) -> usize {
    let polls = Arc::new(AtomicUsize::new(0));
    let (completers, futures): (Vec<_>, Vec<_>) = (0..count)
        .map(|_| {
            let (completer, future) = TaskFuture::pair();
            (completer, Counted { future, polls: polls.clone(), budgeted })
        })
        .unzip();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let collector = runtime.spawn(async move {
        let mut done = as_completed(futures);
        let mut collected = 0;
        while let Some(outcome) = done.next().await {
            outcome.unwrap();
            collected += 1;
        }
        collected
    });
    // From both ends, so that it is not the order in which they were given.
    let (front, back) = completers.split_at(count / 2);
    for (first, last) in front.iter().zip(back.iter().rev()) {
        first.complete(Ok(1)).unwrap();
        last.complete(Ok(2)).unwrap();
    }
    assert_eq!(runtime.block_on(collector).unwrap(), count);
    polls.load(Ordering::Relaxed)
}

fn as_completed_is_linear_on_a_tokio_worker() {
    for count in [1_000, 100_000, 1_000_000] {
        let polls = polls_for(count, false);
        // Each is polled once to begin with and once when it has finished; the first that is pending once more.
        assert!(polls >= count && polls <= 2 * count + 1, "{polls} polls of {count} futures");
    }
}

fn as_completed_is_linear_when_the_budget_runs_out() {
    // After 128 of these in one poll, tokio makes every further one answer "pending".
    for count in [1_000, 100_000] {
        let polls = polls_for(count, true);
        assert!(polls >= count && polls <= 2 * count + 1, "{polls} polls of {count} futures");
    }
}

fn as_completed_of_finished_futures_polls_each_once() {
    for budgeted in [false, true] {
        let polls = Arc::new(AtomicUsize::new(0));
        let counted = |_| Counted { future: succeeded().1, polls: polls.clone(), budgeted };
        let futures: Vec<_> = (0..100_000).map(counted).collect();
        let collected = runtime().block_on(async {
            // On a worker, where the cooperative budget is in force.
            tokio::spawn(async move { as_completed(futures).count().await }).await.unwrap()
        });
        assert_eq!((collected, polls.load(Ordering::Relaxed)), (100_000, 100_000));
    }
}
