//! `timeout`, `deadline` and `wait_timeout`; `tagged` and `on_done`.

mod common;

use std::cell::Cell;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use futures_ext::{Elapsed, FutureExt, block_on, on_done};
use tokio::sync::oneshot;

use common::{poll_once, watchdog};

const SHORT: Duration = Duration::from_millis(5);

#[test]
fn ready_future_wins_over_a_timeout_that_has_passed() {
    assert_eq!(poll_once(&mut ready(1).timeout(Duration::ZERO)), Poll::Ready(Ok(1)));
    let past = Instant::now();
    assert_eq!(poll_once(&mut ready(1).deadline(past)), Poll::Ready(Ok(1)));
}

#[test]
fn elapsed_says_the_duration() {
    let error = poll_once(&mut pending::<()>().timeout(Duration::ZERO));
    assert_eq!(error, Poll::Ready(Err(Elapsed::new(Duration::ZERO))));
    let error: Box<dyn std::error::Error> = Box::new(Elapsed::new(Duration::from_millis(1500)));
    assert_eq!(error.to_string(), "no outcome within 1.5s");
}

#[test]
fn timeout_fires_with_no_runtime() {
    watchdog(|| {
        let start = Instant::now();
        assert_eq!(block_on(pending::<()>().timeout(SHORT)), Err(Elapsed::new(SHORT)));
        assert!(start.elapsed() >= SHORT);
        assert!(block_on(pending::<()>().deadline(Instant::now() + SHORT)).is_err());
    });
}

#[tokio::test]
async fn timeout_fires_under_tokio() {
    assert_eq!(pending::<()>().timeout(SHORT).await, Err(Elapsed::new(SHORT)));
}

#[test]
fn outcome_before_the_timeout_is_the_outcome() {
    watchdog(|| {
        let (sender, receiver) = oneshot::channel();
        let other = thread::spawn(move || sender.send(3));
        assert_eq!(block_on(receiver.timeout(Duration::MAX)), Ok(Ok(3)));
        other.join().unwrap().unwrap();
    });
}

#[test]
fn timed_out_future_can_be_taken_back() {
    let (sender, receiver) = oneshot::channel();
    let mut late = receiver.timeout(Duration::ZERO);
    assert!(matches!(poll_once(&mut late), Poll::Ready(Err(_))));
    sender.send(3).unwrap();
    assert_eq!(late.into_inner().wait(), Ok(3));
}

/// A future that is only held up by tokio's budget is not late.
#[tokio::test]
async fn used_up_budget_is_no_timeout() {
    let task = tokio::spawn(async {
        let (sender, receiver) = oneshot::channel();
        sender.send(1).unwrap();
        while tokio::task::coop::has_budget_remaining() {
            tokio::task::coop::consume_budget().await;
        }
        poll_once(&mut receiver.timeout(Duration::ZERO))
    });
    assert_eq!(task.await.unwrap(), Poll::Ready(Ok(Ok(1))));
}

#[test]
fn wait_timeout_only_borrows() {
    watchdog(|| {
        let (sender, mut receiver) = oneshot::channel();
        assert_eq!(receiver.wait_timeout(SHORT), Err(Elapsed::new(SHORT)));
        assert_eq!(receiver.wait_timeout(Duration::ZERO), Err(Elapsed::new(Duration::ZERO)));
        let other = thread::spawn(move || sender.send(3));
        assert_eq!(receiver.wait_timeout(Duration::MAX), Ok(Ok(3)));
        other.join().unwrap().unwrap();
        let mut block = pin!(async { 1 });
        assert_eq!(block.wait_timeout(SHORT), Ok(1));
    });
}

#[test]
fn tag_comes_with_the_output() {
    let (sender, receiver) = oneshot::channel();
    let mut tagged = receiver.tagged(String::from("a"));
    assert!(poll_once(&mut tagged).is_pending());
    assert_eq!(tagged.tag().unwrap(), "a");
    sender.send(1).unwrap();
    assert_eq!(poll_once(&mut tagged), Poll::Ready(("a".into(), Ok(1))));
    assert_eq!(tagged.tag(), None);
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(&mut tagged))).is_err());
}

#[test]
fn callback_is_called_once_before_the_output_is_given_out() {
    let seen = Rc::new(Cell::new(0));
    let (sender, receiver) = oneshot::channel();
    let sees = Rc::clone(&seen);
    let mut watched = on_done(receiver, move |output| sees.set(sees.get() + output.as_ref().unwrap()));
    assert!(poll_once(&mut watched).is_pending());
    assert_eq!(seen.get(), 0);
    sender.send(7).unwrap();
    assert_eq!(poll_once(&mut watched), Poll::Ready(Ok(7)));
    assert_eq!(seen.get(), 7);
    assert!(format!("{watched:?}").contains("called: true"));
    drop(watched);
    assert_eq!(seen.get(), 7);
    assert_eq!(Rc::strong_count(&seen), 1);
}

#[test]
fn callback_of_a_dropped_future_is_never_called() {
    let mut watched = on_done(pending::<()>(), |()| panic!("it has not finished"));
    assert!(poll_once(&mut watched).is_pending());
    drop(watched);
}

#[test]
fn combinators_stay_unpin() {
    fn unpin<T: Unpin>(_: &T) {}
    let token = futures_ext::CancellationToken::new();
    let all = on_done(ready(1).timeout(SHORT).tagged(1), |_| ()).cancellable(token);
    unpin(&all);
    assert_eq!(all.wait(), Ok((1, Ok(1))));
}
