//! Bounding the wait for one future.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::alarm::Alarm;
use crate::blocking::poll_unconstrained;

/// The future made by [`FutureExt::timeout`](crate::FutureExt::timeout) and
/// [`FutureExt::deadline`](crate::FutureExt::deadline).
///
/// A future that is ready wins over a deadline that has passed. After [`Elapsed`] the future inside is untouched: polled
/// again, this gives the output if it is there by then, and [`Elapsed`] otherwise; [`into_inner`](Self::into_inner) gives
/// the future back.
#[must_use = "a future does nothing until it is polled"]
#[derive(Debug)]
#[pin_project::pin_project]
pub struct Timeout<F> {
    #[pin]
    future: F,
    duration: Duration,
    alarm: Alarm,
}

impl<F> Timeout<F> {
    pub(crate) fn after(future: F, duration: Duration) -> Self {
        Self { future, duration, alarm: Alarm::after(duration) }
    }

    pub(crate) fn at(future: F, deadline: Instant) -> Self {
        let duration = deadline.saturating_duration_since(Instant::now());
        Self { future, duration, alarm: Alarm::at(deadline) }
    }

    /// The future inside.
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(std::future::ready(1).timeout(Duration::ZERO).get_ref().clone().into_inner(), 1);
    /// ```
    pub fn get_ref(&self) -> &F {
        &self.future
    }

    /// The future inside, to change it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::FutureExt;
    ///
    /// let mut late = std::future::ready(1).timeout(Duration::ZERO);
    /// *late.get_mut() = std::future::ready(2);
    /// assert_eq!(late.wait(), Ok(2));
    /// ```
    pub fn get_mut(&mut self) -> &mut F {
        &mut self.future
    }

    /// The future inside, without the bound.
    ///
    /// ```
    /// use std::time::Duration;
    /// use futures_ext::FutureExt;
    ///
    /// assert_eq!(std::future::ready(1).timeout(Duration::ZERO).into_inner().wait(), 1);
    /// ```
    pub fn into_inner(self) -> F {
        self.future
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Poll::Ready(output) = this.future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        match this.alarm.poll(cx) {
            Poll::Pending => Poll::Pending,
            // Perhaps the future only said "pending" because tokio's budget for this task was used up.
            Poll::Ready(()) => match poll_unconstrained(this.future, cx) {
                Poll::Ready(output) => Poll::Ready(Ok(output)),
                Poll::Pending => Poll::Ready(Err(Elapsed::new(*this.duration))),
            },
        }
    }
}

/// The wait ended before the future did: "no outcome within 1.5s".
///
/// It says nothing about the work behind the future, which may well go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("no outcome within {duration:?}")]
pub struct Elapsed {
    duration: Duration,
}

impl Elapsed {
    /// An error for a wait of `duration`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let error = futures_ext::Elapsed::new(Duration::from_millis(1500));
    /// assert_eq!(error.to_string(), "no outcome within 1.5s");
    /// ```
    pub const fn new(duration: Duration) -> Self {
        Self { duration }
    }

    /// How long the wait was to last at most; for a deadline, counted from when it was set.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// assert_eq!(futures_ext::Elapsed::new(Duration::from_secs(1)).duration().as_secs(), 1);
    /// ```
    pub const fn duration(&self) -> Duration {
        self.duration
    }
}
