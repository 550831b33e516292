//! `wait`: the modes, the split, the timeout.

mod common;

use std::error::Error;
use std::fmt;
use std::future::{Ready, ready};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use futures_core::FusedFuture;
use futures_ext::{
    All, Cancelled, FirstCompleted, FirstFailure, FutureExt, Outcome, Wait, Waited, block_on, on_done, wait,
};
use tokio::sync::{oneshot, watch};

use common::{Restless, poll_once, watchdog};

/// What a task of some pool might say.
#[derive(Debug, PartialEq)]
enum TaskError {
    Failed,
    Stopped(Cancelled),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl Error for TaskError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed => None,
            Self::Stopped(cause) => Some(cause),
        }
    }
}

type Output = Result<i32, TaskError>;

/// A task that is moved by hand; a closed gate panics, so no test relies on one.
fn gates(n: usize) -> (Vec<oneshot::Sender<Output>>, Vec<Gate>) {
    (0..n).map(|_| oneshot::channel()).map(|(sender, receiver)| (sender, Gate(receiver))).unzip()
}

#[derive(Debug)]
struct Gate(oneshot::Receiver<Output>);

impl Future for Gate {
    type Output = Output;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Output> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(|output| output.expect("the gate was opened"))
    }
}

fn ended<F: Future + Unpin, W: futures_ext::ReturnWhen<F::Output>>(wait: &mut Wait<F, W>) -> Waited<F> {
    match poll_once(wait) {
        Poll::Ready(waited) => waited,
        Poll::Pending => panic!("the wait should be over"),
    }
}

#[test]
fn all_waits_for_all_failures_included() {
    let (senders, futures) = gates(3);
    let mut waiting = wait(futures, All, None);
    for (sender, output) in senders.into_iter().rev().zip([Ok(1), Err(TaskError::Failed), Ok(3)]) {
        assert!(poll_once(&mut waiting).is_pending());
        sender.send(output).unwrap();
    }
    assert!(!waiting.is_terminated());
    let waited = ended(&mut waiting);
    assert!(waiting.is_terminated());
    assert_eq!(waited.done, [Ok(1), Err(TaskError::Failed), Ok(3)], "in the order of completion");
    assert!(waited.pending.is_empty());
}

#[test]
fn first_completed_returns_with_the_first() {
    let (mut senders, futures) = gates(3);
    let mut waiting = wait(futures, FirstCompleted, None);
    assert!(poll_once(&mut waiting).is_pending());
    senders.remove(1).send(Ok(1)).unwrap();
    let waited = ended(&mut waiting);
    assert_eq!(waited.done, [Ok(1)]);
    assert_eq!(waited.pending.len(), 2);
    for (sender, value) in senders.into_iter().zip([0, 2]) {
        sender.send(Ok(value)).unwrap();
    }
    let values: Vec<_> = waited.pending.into_iter().map(FutureExt::wait).collect();
    assert_eq!(values, [Ok(0), Ok(2)], "pending futures are usable, in the order given");
}

#[test]
fn first_completed_collects_everything_that_was_finished_before() {
    let (mut senders, futures) = gates(4);
    senders.remove(3).send(Ok(3)).unwrap();
    senders.remove(1).send(Ok(1)).unwrap();
    let waited = ended(&mut wait(futures, FirstCompleted, None));
    assert_eq!(waited.done, [Ok(1), Ok(3)]);
    assert_eq!(waited.pending.len(), 2);
}

#[test]
fn first_failure_is_not_ended_by_successes() {
    let (mut senders, futures) = gates(3);
    let mut waiting = wait(futures, FirstFailure, None);
    senders.remove(0).send(Ok(0)).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    senders.remove(0).send(Err(TaskError::Failed)).unwrap();
    let waited = ended(&mut waiting);
    assert_eq!(waited.done, [Ok(0), Err(TaskError::Failed)]);
    assert_eq!(waited.pending.len(), 1);
}

#[test]
fn first_failure_that_was_there_before_ends_it_at_once() {
    let (mut senders, futures) = gates(3);
    senders.remove(2).send(Ok(2)).unwrap();
    senders.remove(0).send(Err(TaskError::Failed)).unwrap();
    let waited = ended(&mut wait(futures, FirstFailure, None));
    assert_eq!(waited.done, [Err(TaskError::Failed), Ok(2)]);
    assert_eq!(waited.pending.len(), 1);
}

#[test]
fn first_failure_without_a_failure_is_all() {
    let (senders, futures) = gates(2);
    let mut waiting = wait(futures, FirstFailure, None);
    for sender in senders {
        assert!(poll_once(&mut waiting).is_pending());
        sender.send(Ok(0)).unwrap();
    }
    assert_eq!(ended(&mut waiting).done.len(), 2);
}

#[test]
fn cancelled_future_is_no_failure() {
    let (mut senders, futures) = gates(2);
    let tagged = futures.into_iter().zip(["a", "b"]).map(|(future, tag)| future.tagged(tag));
    let mut waiting = wait(tagged, FirstFailure, None);
    senders.remove(0).send(Err(TaskError::Stopped(Cancelled::new()))).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    senders.remove(0).send(Err(TaskError::Failed)).unwrap();
    let waited = ended(&mut waiting);
    assert_eq!(waited.done[1], ("b", Err(TaskError::Failed)));
}

#[test]
fn outcome_looks_through_the_sources() {
    assert!(Err::<(), _>(TaskError::Failed).is_failure());
    assert!(!Err::<(), _>(TaskError::Stopped(Cancelled::new())).is_failure());
    assert!(!Err::<(), _>(Cancelled::new()).is_failure());
    assert!(!Ok::<_, TaskError>(()).is_failure());
    assert!(("tag", Err::<(), _>(TaskError::Failed)).is_failure());
}

#[test]
fn predicate_ends_the_wait_and_may_count() {
    let (mut senders, futures) = gates(4);
    let mut successes = 0;
    let two = move |output: &Output| {
        successes += usize::from(output.is_ok());
        successes == 2
    };
    let mut waiting = wait(futures, two, None);
    senders.remove(0).send(Ok(0)).unwrap();
    senders.remove(0).send(Err(TaskError::Failed)).unwrap();
    assert!(poll_once(&mut waiting).is_pending());
    senders.remove(0).send(Ok(2)).unwrap();
    assert_eq!(ended(&mut waiting).done.len(), 3);
}

#[test]
fn timeout_splits_done_and_pending() {
    watchdog(|| {
        let timeout = Duration::from_millis(20);
        for blocking in [false, true] {
            let (mut senders, futures) = gates(3);
            senders.remove(1).send(Ok(1)).unwrap();
            let start = Instant::now();
            let waiting = wait(futures, All, timeout);
            let waited = if blocking { waiting.blocking() } else { block_on(waiting) };
            assert!(start.elapsed() >= timeout);
            assert_eq!((waited.done.len(), waited.pending.len()), (1, 2));
        }
    });
}

#[tokio::test]
async fn timeout_fires_under_tokio() {
    let (_senders, futures) = gates(2);
    let waited = wait(futures, All, Duration::from_millis(5)).await;
    assert_eq!((waited.done.len(), waited.pending.len()), (0, 2));
}

#[test]
fn zero_timeout_takes_what_is_finished() {
    let (mut senders, futures) = gates(2);
    senders.remove(1).send(Ok(1)).unwrap();
    let waited = ended(&mut wait(futures, All, Duration::ZERO));
    assert_eq!((waited.done, waited.pending.len()), (vec![Ok(1)], 1));
}

#[test]
fn restless_futures_do_not_outlive_the_timeout() {
    watchdog(|| {
        let waited = wait([Restless, Restless, Restless], All, Duration::from_millis(5)).blocking();
        assert_eq!((waited.done.len(), waited.pending.len()), (0, 3));
    });
}

#[test]
fn empty_input_returns_at_once() {
    let none = Vec::<Ready<Output>>::new;
    assert!(ended(&mut wait(none(), All, None)).done.is_empty());
    assert!(ended(&mut wait(none(), FirstCompleted, None)).done.is_empty());
    assert!(ended(&mut wait(none(), FirstFailure, None)).done.is_empty());
    assert!(wait(none(), All, Duration::MAX).blocking().pending.is_empty());
}

#[test]
#[should_panic(expected = "after it had finished")]
fn polling_after_the_end_panics() {
    let mut waiting = wait([ready(())], All, None);
    let _ = ended(&mut waiting);
    let _ = poll_once(&mut waiting);
}

/// 100 tasks released together, 200 times: no wake-up is lost.
#[test]
fn tasks_released_together_are_all_seen() {
    watchdog(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        for _ in 0..200 {
            let (release, released) = watch::channel(false);
            let tasks = (0..100).map(|_| {
                let mut released = released.clone();
                runtime.spawn(async move { released.wait_for(|open| *open).await.map(drop) })
            });
            let waiting = wait(tasks.collect::<Vec<_>>(), All, Duration::from_secs(30));
            let opener = thread::spawn(move || release.send(true).map(|()| release));
            let waited = waiting.blocking();
            assert_eq!((waited.done.len(), waited.pending.len()), (100, 0));
            opener.join().unwrap().unwrap();
        }
    });
}

#[test]
fn debug_needs_nothing_of_the_futures() {
    let waiting = wait([ready(1)].map(|future| on_done(future, |_| ())), All, None);
    assert_eq!(format!("{waiting:?}"), "Wait { done: 0, unfinished: 1, deadline: None, .. }");
    assert_eq!(format!("{:?}", waiting.blocking()), "Waited { done: [1], pending: 0 }");
}
