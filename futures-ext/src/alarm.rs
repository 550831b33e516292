//! A deadline that a future can wait for: the one place where this crate meets a timer.
//!
//! The timer is made on the first poll that has to wait, so a future that is ready at once never starts one, nor the
//! timer's background thread.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_io::Timer;

/// An instant to wait for; `None` is never.
#[derive(Debug)]
pub(crate) struct Alarm {
    deadline: Option<Instant>,
    timer: Option<Timer>,
}

impl Alarm {
    pub(crate) fn at(deadline: Instant) -> Self {
        Self { deadline: Some(deadline), timer: None }
    }

    pub(crate) fn never() -> Self {
        Self { deadline: None, timer: None }
    }

    /// An alarm `timeout` from now. A timeout beyond what the clock can count never fires.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self { deadline: Instant::now().checked_add(timeout), timer: None }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn passed(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Ready once the deadline has passed; otherwise the task is woken then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else {
            return Poll::Pending;
        };
        if Instant::now() >= deadline {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| Timer::at(deadline));
        Pin::new(timer).poll(cx).map(drop)
    }
}
