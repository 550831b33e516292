//! What the tests share: a watchdog, and futures that are moved by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use futures_core::Stream;

/// Runs a test that might hang in a thread of its own, and fails after a minute.
pub(crate) fn watchdog(body: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel();
    let test = thread::spawn(move || {
        body();
        let _ = done.send(());
    });
    match finished.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the test hangs"),
        // A panic of the body drops the sender; the join passes it on.
        Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
            if let Err(panic) = test.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

/// Polls once with a waker that does nothing.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// As [`poll_once`], for streams.
pub(crate) fn next_once<S: Stream + Unpin>(stream: &mut S) -> Poll<Option<S::Item>> {
    Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()))
}

/// Counts the polls of a future.
#[derive(Debug)]
#[pin_project::pin_project]
pub(crate) struct Polled<F> {
    #[pin]
    future: F,
    polls: Arc<AtomicUsize>,
}

impl<F> Polled<F> {
    pub(crate) fn new(future: F, polls: &Arc<AtomicUsize>) -> Self {
        Self { future, polls: Arc::clone(polls) }
    }
}

impl<F: Future> Future for Polled<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.polls.fetch_add(1, Ordering::SeqCst);
        this.future.poll(cx)
    }
}

/// A future that is never ready and wakes itself in each poll.
#[derive(Debug)]
pub(crate) struct Restless;

impl Future for Restless {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
