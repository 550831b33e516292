//! `as_completed`: order, end, deadline, counts, ownership.

mod common;

use std::future::{Future, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use futures_core::{FusedStream, Stream};
use futures_ext::{FutureExt, Unfinished, as_completed, block_on};
use futures_util::StreamExt;
use tokio::sync::oneshot;

use common::{Restless, next_once, watchdog};

type Boxed<T> = Pin<Box<dyn Future<Output = T>>>;

fn gates<const N: usize>() -> ([Option<oneshot::Sender<i32>>; N], Vec<oneshot::Receiver<i32>>) {
    let mut receivers = Vec::new();
    let senders = [(); N].map(|()| {
        let (sender, receiver) = oneshot::channel();
        receivers.push(receiver);
        Some(sender)
    });
    (senders, receivers)
}

fn open(gate: &mut Option<oneshot::Sender<i32>>, value: i32) {
    gate.take().expect("a gate opens once").send(value).expect("the future is alive");
}

/// Waits for time to pass without guessing how long a sleep takes.
fn pass(deadline: Instant) {
    while Instant::now() < deadline {
        thread::yield_now();
    }
}

/// The set yielded is the set given: finished, failed, cancelled and running.
#[test]
fn yields_what_was_finished_and_what_finishes_later() {
    watchdog(|| {
        let (mut senders, receivers) = gates::<4>();
        open(&mut senders[0], 0);
        senders[1].take(); // dropped: fails
        let [_, _, third, fourth] = senders;
        let release = thread::spawn(move || {
            third.unwrap().send(2).unwrap();
            drop(fourth);
        });
        let futures = receivers.into_iter().zip(0..).map(|(future, tag)| future.tagged(tag));
        let mut got: Vec<_> = as_completed(futures).blocking().collect();
        release.join().unwrap();
        assert_eq!(got[0], (0, Ok(0)), "what was finished comes first");
        assert_eq!(got[1].0, 1);
        got.sort_by_key(|(tag, _)| *tag);
        let values: Vec<_> = got.into_iter().map(|(_, output)| output.ok()).collect();
        assert_eq!(values, [Some(0), None, Some(2), None]);
    });
}

#[test]
fn order_is_that_of_completion() {
    let (mut senders, receivers) = gates::<3>();
    let mut done = as_completed(receivers);
    assert!(next_once(&mut done).is_pending());
    for which in [2, 0, 1] {
        open(&mut senders[which], which as i32);
        assert_eq!(next_once(&mut done), Poll::Ready(Some(Ok(which as i32))));
    }
    assert_eq!(next_once(&mut done), Poll::Ready(None));
}

#[test]
fn stays_ended_after_the_end() {
    let mut done = as_completed([ready(1)]);
    assert!(!done.is_terminated());
    assert_eq!(next_once(&mut done), Poll::Ready(Some(1)));
    assert!(!done.is_terminated());
    for _ in 0..3 {
        assert_eq!(next_once(&mut done), Poll::Ready(None));
        assert!(done.is_terminated());
    }
}

#[test]
fn empty_input_ends_at_once() {
    assert_eq!(next_once(&mut as_completed(Vec::<Boxed<()>>::new())), Poll::Ready(None));
    let timed = as_completed(Vec::<Boxed<()>>::new());
    let mut timed = timed.timeout(Duration::ZERO);
    assert_eq!(next_once(&mut timed), Poll::Ready(None));
    assert!(timed.is_terminated());
    assert_eq!(as_completed(Vec::<Boxed<()>>::new()).blocking().next(), None);
}

#[test]
fn takes_a_lazy_iterable_once() {
    let mut left = 3;
    let lazy = std::iter::from_fn(|| {
        left -= 1;
        (left >= 0).then(|| ready(left))
    });
    let mut got: Vec<_> = as_completed(lazy).blocking().collect();
    got.sort_unstable();
    assert_eq!(got, [0, 1, 2]);
}

/// Futures are owned, so duplicates can only be clones of a shared one: futures of their own.
#[test]
fn clones_of_a_shared_future_yield_once_each() {
    use futures_util::FutureExt as _;
    let polls = Arc::new(AtomicUsize::new(0));
    let shared = common::Polled::new(ready(5), &polls).shared();
    let lazy = std::iter::repeat_n(shared, 3);
    assert_eq!(as_completed(lazy).blocking().collect::<Vec<_>>(), [5, 5, 5]);
    assert_eq!(polls.load(Ordering::SeqCst), 1);
}

/// Finished ones first, then one error that counts what is missing, then the end; for zero and for 100 ms.
#[test]
fn timeout_yields_finished_ones_then_says_what_is_missing() {
    watchdog(|| {
        for timeout in [Duration::ZERO, Duration::from_millis(100)] {
            for blocking in [false, true] {
                let (mut senders, mut receivers) = gates::<4>();
                receivers.rotate_left(1); // the unfinished one is polled before the last finished one
                let start = Instant::now();
                (1..4).for_each(|which| open(&mut senders[which], which as i32));
                let done = as_completed(receivers).timeout(timeout);
                let items: Vec<_> = match blocking {
                    true => done.blocking().collect(),
                    false => block_on(done.collect()),
                };
                assert!(start.elapsed() >= timeout);
                let (error, finished) = items.split_last().unwrap();
                assert!(finished.iter().all(Result::is_ok));
                assert_eq!(finished.len(), 3);
                let error = error.as_ref().unwrap_err();
                assert_eq!((error.unfinished(), error.total()), (1, 4));
                assert_eq!(error.to_string(), "unfinished 1 of 4");
                assert!(std::error::Error::source(error).is_none());
            }
        }
    });
}

#[test]
fn timeout_ends_for_ever_and_keeps_the_pending_futures() {
    let (mut senders, receivers) = gates::<2>();
    let mut done = as_completed(receivers).timeout(Duration::ZERO);
    assert_eq!(next_once(&mut done), Poll::Ready(Some(Err(Unfinished::new(2, 2)))));
    open(&mut senders[0], 7);
    for _ in 0..3 {
        assert_eq!(next_once(&mut done), Poll::Ready(None));
        assert!(done.is_terminated());
    }
    assert_eq!((done.unfinished(), done.total()), (2, 2));
    let late = done.into_pending().next().unwrap();
    assert_eq!(late.wait(), Ok(7));
}

#[test]
fn timeout_says_nothing_when_all_have_finished() {
    let items: Vec<_> = as_completed([1, 2].map(ready)).timeout(Duration::MAX).blocking().collect();
    assert_eq!(items, [Ok(1), Ok(2)]);
    let items: Vec<_> = as_completed([1, 2].map(ready)).timeout(Duration::ZERO).blocking().collect();
    assert_eq!(items, [Ok(1), Ok(2)]);
}

#[test]
fn timeout_counts_from_its_call() {
    watchdog(|| {
        let (mut senders, receivers) = gates::<3>();
        let timeout = Duration::from_millis(20);
        let mut done = as_completed(receivers).timeout(timeout);
        let called = Instant::now();
        open(&mut senders[0], 0);
        assert_eq!(block_on(done.next()), Some(Ok(Ok(0))));
        pass(called + timeout);
        open(&mut senders[1], 1); // late, but there before anybody looked
        assert_eq!(next_once(&mut done), Poll::Ready(Some(Ok(Ok(1)))));
        assert_eq!(next_once(&mut done), Poll::Ready(Some(Err(Unfinished::new(1, 3)))));
        assert_eq!(next_once(&mut done), Poll::Ready(None));
    });
}

/// A loop body that finishes further futures after the deadline would otherwise carry the stream on.
#[test]
fn steady_flow_does_not_carry_the_stream_beyond_its_deadline() {
    let (mut senders, receivers) = gates::<3>();
    open(&mut senders[0], 0);
    let mut done = as_completed(receivers).timeout(Duration::ZERO);
    assert_eq!(next_once(&mut done), Poll::Ready(Some(Ok(Ok(0)))));
    open(&mut senders[1], 1);
    assert_eq!(next_once(&mut done), Poll::Ready(Some(Err(Unfinished::new(2, 3)))));
}

/// The set underneath gives way when two futures wake themselves; that must not look like "nothing is ready".
#[test]
fn restless_futures_do_not_hide_finished_ones_at_the_deadline() {
    watchdog(|| {
        let restless = (0..20).map(|_| Box::pin(Restless) as Boxed<i32>);
        let futures = restless.chain([Box::pin(ready(1)) as Boxed<i32>, Box::pin(ready(2))]);
        let items: Vec<_> = as_completed(futures).timeout(Duration::ZERO).blocking().collect();
        assert_eq!(items, [Ok(1), Ok(2), Err(Unfinished::new(20, 22))]);
    });
}

#[test]
fn restless_futures_do_not_outlive_a_deadline() {
    watchdog(|| {
        let items: Vec<_> = as_completed([Restless]).timeout(Duration::from_millis(5)).blocking().collect();
        assert_eq!(items, [Err(Unfinished::new(1, 1))]);
        let timed = as_completed([Restless]).timeout(Duration::from_millis(5));
        assert_eq!(block_on(timed.collect::<Vec<_>>()), [Err(Unfinished::new(1, 1))]);
    });
}

/// The timer needs no runtime, and works under tokio.
#[tokio::test]
async fn timeout_fires_under_tokio() {
    let items: Vec<_> = as_completed([pending::<()>()]).timeout(Duration::from_millis(5)).collect().await;
    assert_eq!(items, [Err(Unfinished::new(1, 1))]);
}

/// A future that owns something.
struct Owns(i32, #[allow(dead_code, reason = "its references are counted")] Arc<()>);

impl Future for Owns {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<i32> {
        Poll::Ready(self.0)
    }
}

/// After each yield, the test's reference to what the future owned is the last one.
#[test]
fn does_not_hold_a_yielded_future() {
    let owned = [(); 3].map(Arc::new);
    let futures = owned.iter().zip(0..).map(|(owned, number)| Owns(number, Arc::clone(owned)));
    let mut seen = 0;
    for number in as_completed(futures).blocking() {
        seen += 1;
        assert_eq!(Arc::strong_count(&owned[number as usize]), 1);
        assert_eq!(owned.iter().filter(|owned| Arc::strong_count(owned) == 2).count(), 3 - seen);
    }
    assert_eq!(seen, 3);
}

#[test]
fn finishing_another_future_from_the_loop_body_yields_it_once() {
    watchdog(|| {
        let (mut senders, receivers) = gates::<3>();
        open(&mut senders[0], 0);
        let mut got = Vec::new();
        for output in as_completed(receivers).blocking() {
            let output = output.unwrap();
            got.push(output);
            if let Some(gate) = senders.get_mut(output as usize + 1) {
                open(gate, output + 1);
            }
        }
        assert_eq!(got, [0, 1, 2]);
    });
}

#[tokio::test]
async fn dropping_half_way_leaves_the_rest_running() {
    let (senders, receivers) = gates::<3>();
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let tasks = receivers.into_iter().map(|gate| {
        let report = report.clone();
        tokio::spawn(async move {
            let value = gate.await.unwrap();
            report.send(value).unwrap();
            value
        })
    });
    let mut done = as_completed(tasks.collect::<Vec<_>>());
    let mut senders = senders;
    open(&mut senders[1], 1);
    assert_eq!(done.next().await.unwrap().unwrap(), 1);
    drop(done);
    open(&mut senders[0], 0);
    assert_eq!(reports.recv().await, Some(1));
    assert_eq!(reports.recv().await, Some(0));
}

#[test]
fn dropping_half_way_drops_the_remaining_futures() {
    let (mut senders, receivers) = gates::<2>();
    open(&mut senders[0], 0);
    let mut done = as_completed(receivers);
    assert_eq!(next_once(&mut done), Poll::Ready(Some(Ok(0))));
    drop(done);
    assert!(senders[1].as_ref().unwrap().is_closed());
}

#[test]
fn counts_and_hands_back_what_is_pending() {
    let (mut senders, receivers) = gates::<5>();
    let mut done = as_completed(receivers);
    assert_eq!((done.unfinished(), done.total(), done.size_hint()), (5, 5, (5, Some(5))));
    open(&mut senders[3], 3);
    assert_eq!(next_once(&mut done), Poll::Ready(Some(Ok(3))));
    assert!(next_once(&mut done).is_pending());
    assert_eq!((done.unfinished(), done.total(), done.size_hint()), (4, 5, (4, Some(4))));
    for (sender, which) in senders.iter_mut().zip(0..).filter(|(sender, _)| sender.is_some()) {
        open(sender, which);
    }
    let pending = done.into_pending();
    assert_eq!(pending.len(), 4);
    let values: Vec<_> = pending.map(|future| future.wait().unwrap()).collect();
    assert_eq!(values, [0, 1, 2, 4], "in the order in which they were given");
}

#[test]
fn pending_futures_keep_their_order_however_often_they_were_polled() {
    let mut done = as_completed((0..3).map(|number| Restless.tagged(number)));
    assert!(next_once(&mut done).is_pending());
    assert!(next_once(&mut done).is_pending());
    let tags: Vec<_> = done.into_pending().map(|future| *future.tag().unwrap()).collect();
    assert_eq!(tags, [0, 1, 2]);
}

#[test]
fn panic_of_one_future_leaves_the_others_unharmed() {
    let futures: Vec<Boxed<i32>> = vec![Box::pin(async { panic!("one of them") }), Box::pin(ready(2))];
    let mut done = as_completed(futures);
    assert!(catch_unwind(AssertUnwindSafe(|| next_once(&mut done))).is_err());
    assert_eq!(next_once(&mut done), Poll::Ready(Some(2)));
    assert_eq!(next_once(&mut done), Poll::Ready(None));
}

/// A loop over outputs that are all there must let others run, for tokio's sake.
#[test]
fn consumer_yields_to_the_scheduler() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&turns);
    runtime.block_on(async move {
        let seen = Arc::clone(&counter);
        tokio::spawn(async move {
            loop {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        });
        let consumer = tokio::spawn(async move {
            let mut done = as_completed((0..10_000).map(ready));
            let before = seen.load(Ordering::SeqCst);
            while done.next().await.is_some() {}
            seen.load(Ordering::SeqCst) - before
        });
        assert!(consumer.await.unwrap() >= 10, "the other task had its turns during the loop");
    });
}

/// A wait on a thread whose tokio budget is used up must not sleep for ever.
#[test]
fn blocking_inside_a_task_with_no_budget_left() {
    watchdog(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sum = runtime.block_on(async {
            tokio::spawn(async {
                while tokio::task::coop::has_budget_remaining() {
                    tokio::task::coop::consume_budget().await;
                }
                as_completed((0..1_000).map(ready)).blocking().sum::<i32>()
            })
            .await
        });
        assert_eq!(sum.unwrap(), 499_500);
    });
}

#[test]
fn debug_needs_nothing_of_the_futures() {
    let (_senders, receivers) = gates::<2>();
    let done = as_completed(receivers);
    assert_eq!(format!("{done:?}"), "AsCompleted { unfinished: 2, total: 2 }");
    let timed = done.timeout(Duration::MAX);
    assert!(format!("{timed:?}").starts_with("AsCompletedTimeout { unfinished: 2, total: 2"));
    assert_eq!(format!("{:?}", timed.into_pending()), "IntoPending { left: 2 }");
}

/// What holds sendable futures can be sent: it is driven by spawned tasks.
#[test]
fn collectors_are_send() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let done = send(as_completed([ready(1)]));
    let done = send(send(done.timeout(Duration::MAX)).progress(futures_ext::Progress::new().hidden()));
    assert_eq!(block_on(done.count()), 1);
    let waiting = send(futures_ext::wait([ready(1)], futures_ext::All, Duration::MAX));
    assert_eq!(waiting.blocking().done, [1]);
    let token = futures_ext::CancellationToken::new();
    assert_eq!(send(ready(1).cancellable(token).timeout(Duration::MAX)).wait(), Ok(Ok(1)));
}
