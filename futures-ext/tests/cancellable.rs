//! `cancellable`, and the facts about trees of tokens that it relies on.

mod common;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;

use futures_ext::{CancellationToken, Cancelled, FutureExt, as_completed};
use tokio::sync::oneshot;

use common::{Polled, poll_once, watchdog};

fn polls() -> Arc<AtomicUsize> {
    Arc::new(AtomicUsize::new(0))
}

#[test]
fn s2_cancel_goes_down_the_tree() {
    let root = CancellationToken::new();
    let child = root.child_token();
    let grandchild = child.child_token();
    let mut futures = [&root, &child, &grandchild].map(|token| pending::<()>().cancellable(token.clone()));
    assert!(futures.iter_mut().all(|future| poll_once(future).is_pending()));
    root.cancel();
    for future in &mut futures {
        assert_eq!(poll_once(future), Poll::Ready(Err(Cancelled::new())));
    }
}

#[test]
fn s2_cancel_goes_neither_up_nor_sideways() {
    let root = CancellationToken::new();
    let (one, other) = (root.child_token(), root.child_token());
    let below = one.child_token();
    let mut up = pending::<()>().cancellable(root.clone());
    let mut sideways = pending::<()>().cancellable(other.clone());
    let mut down = pending::<()>().cancellable(below);
    one.cancel();
    assert!(poll_once(&mut up).is_pending());
    assert!(poll_once(&mut sideways).is_pending());
    assert_eq!(poll_once(&mut down), Poll::Ready(Err(Cancelled::new())));
    assert!(!root.is_cancelled() && !other.is_cancelled());
}

#[test]
fn s2_late_children_are_born_cancelled() {
    let root = CancellationToken::new();
    root.cancel();
    let late = root.child_token().child_token();
    let polls = polls();
    let future = Polled::new(async { 1 }, &polls).cancellable(late);
    let mut future = std::pin::pin!(future);
    assert_eq!(poll_once(&mut future), Poll::Ready(Err(Cancelled::new())));
    assert_eq!(polls.load(Ordering::SeqCst), 0);
}

#[test]
fn s2_cancel_passes_a_middle_token_that_was_dropped() {
    let root = CancellationToken::new();
    let middle = root.child_token();
    let (leaf, sibling) = (middle.child_token(), middle.child_token());
    drop(middle);
    let mut future = pending::<()>().cancellable(leaf.clone());
    let mut beside = pending::<()>().cancellable(sibling);
    assert!(poll_once(&mut future).is_pending());
    leaf.cancel();
    assert_eq!(poll_once(&mut future), Poll::Ready(Err(Cancelled::new())));
    assert!(poll_once(&mut beside).is_pending(), "neither up nor sideways");
    assert!(!root.is_cancelled());
    root.cancel();
    assert_eq!(poll_once(&mut beside), Poll::Ready(Err(Cancelled::new())), "still down");
}

#[test]
fn s2_nothing_is_polled_after_cancel_and_the_future_is_dropped() {
    let token = CancellationToken::new();
    let polls = polls();
    let (sender, receiver) = oneshot::channel::<()>();
    let mut future = Polled::new(receiver, &polls).cancellable(token.clone());
    assert!(poll_once(&mut future).is_pending());
    assert_eq!(polls.load(Ordering::SeqCst), 1);
    token.cancel();
    assert!(future.get_ref().is_some());
    assert_eq!(poll_once(&mut future), Poll::Ready(Err(Cancelled::new())));
    assert_eq!(polls.load(Ordering::SeqCst), 1);
    assert!(sender.is_closed(), "dropped at the cancel, not with the combinator");
    assert!(future.get_ref().is_none());
    assert_eq!(poll_once(&mut future), Poll::Ready(Err(Cancelled::new())));
    assert!(future.into_inner().is_none());
}

#[test]
fn s2_middle_token_dropped_late_child_and_nothing_polled() {
    let root = CancellationToken::new();
    let leaf = root.child_token().child_token(); // the middle one is gone already
    let polls = polls();
    let mut future = Polled::new(pending::<()>(), &polls).cancellable(leaf.clone());
    assert!(poll_once(&mut future).is_pending());
    root.cancel();
    assert_eq!(poll_once(&mut future), Poll::Ready(Err(Cancelled::new())));
    assert_eq!(polls.load(Ordering::SeqCst), 1);
    assert!(leaf.child_token().is_cancelled());
}

#[test]
fn cancel_from_another_thread_wakes_the_waiter() {
    watchdog(|| {
        for _ in 0..200 {
            let token = CancellationToken::new();
            let canceller = token.clone();
            let other = thread::spawn(move || canceller.cancel());
            assert_eq!(pending::<()>().cancellable(token).wait(), Err(Cancelled::new()));
            other.join().unwrap();
        }
    });
}

/// Cancelling while the future is being polled must not be lost.
#[test]
fn cancel_from_inside_the_future() {
    let token = CancellationToken::new();
    let canceller = token.clone();
    let suicidal = async move {
        canceller.cancel();
        pending::<()>().await;
    };
    assert_eq!(poll_once(&mut Box::pin(suicidal.cancellable(token))), Poll::Ready(Err(Cancelled::new())));
}

#[test]
fn finished_output_is_not_lost_and_the_future_is_dropped() {
    let token = CancellationToken::new();
    let canceller = token.clone();
    let mut future = Box::pin(
        async move {
            canceller.cancel();
            7
        }
        .cancellable(token),
    );
    assert_eq!(poll_once(&mut future), Poll::Ready(Ok(7)));
    assert!(future.get_ref().is_none());
}

#[test]
fn cancelled_ones_count_as_done() {
    watchdog(|| {
        let root = CancellationToken::new();
        let futures = (0..3).map(|_| pending::<()>().cancellable(root.child_token()));
        let mut done = as_completed(futures.collect::<Vec<_>>()).blocking();
        let other = thread::spawn(move || root.cancel());
        assert!(done.all(|output| output == Err(Cancelled::new())));
        other.join().unwrap();
    });
}
