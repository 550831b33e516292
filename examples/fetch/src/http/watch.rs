//! The time an attempt may take: a limit for what is being waited for now, and one for the whole.
//!
//! There is one timer for all of them. It is set once and moved only when it fires early: limits move on with every
//! piece of a body, and moving the timer each time would cost more than all else in here.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::failure::Fault;
use crate::output::record::Kind;
use crate::settings::HttpSettings;

/// When there are no limits at all: the timer needs some instant.
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// For reading to the end what nobody wants, so that the connection can be used again.
const REST: Duration = Duration::from_secs(1);

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The head of the response to a request that was just sent.
    Head,
    /// The next piece of a body.
    Piece,
    /// The rest of a body that nobody wants.
    Rest,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    head: Option<Duration>,
    piece: Option<Duration>,
    whole: Option<Duration>,
}

impl Limits {
    /// `own` is the request's own limit for the whole.
    pub(super) fn new(settings: &HttpSettings, own: Option<Duration>) -> Self {
        let whole = own.or(settings.max_time);
        Limits { head: settings.first_byte_timeout, piece: settings.idle_timeout, whole }
    }

    /// The timer for an attempt that starts now.
    pub(super) fn timer(self, start: Instant) -> Sleep {
        sleep_until(start + self.head.into_iter().chain(self.whole).min().unwrap_or(FAR).min(FAR))
    }
}

/// Watches over one attempt.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    timer: Pin<&'a mut Sleep>,
    limits: Limits,
    start: Instant,
}

impl<'a> Watch<'a> {
    pub(super) fn new(limits: Limits, start: Instant, timer: Pin<&'a mut Sleep>) -> Self {
        Watch { timer, limits, start }
    }

    /// Since the attempt started.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits for `future`, which starts now, for as long as it may take.
    pub(super) async fn over<F: Future>(&mut self, phase: Phase, future: F) -> Result<F::Output, Fault> {
        let mut future = pin!(future);
        let mut end = None; // what is there at once needs no clock
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            let Some(at) = *end.get_or_insert_with(|| self.end(phase)) else { return Poll::Pending };
            if self.timer.deadline() > at {
                self.timer.as_mut().reset(at);
            }
            while self.timer.as_mut().poll(cx).is_ready() {
                if at <= Instant::now() {
                    return Poll::Ready(Err(self.expired(phase, at)));
                }
                self.timer.as_mut().reset(at);
            }
            Poll::Pending
        })
        .await
    }

    /// When a phase that starts now has to be over.
    fn end(&self, phase: Phase) -> Option<Instant> {
        let now = Instant::now();
        let own = match phase {
            Phase::Head => self.limits.head,
            Phase::Piece => self.limits.piece,
            Phase::Rest => Some(REST),
        };
        let own = own.and_then(|limit| now.checked_add(limit));
        let whole = self.limits.whole.and_then(|limit| self.start.checked_add(limit));
        own.into_iter().chain(whole).min()
    }

    fn expired(&self, phase: Phase, at: Instant) -> Fault {
        let whole = self.limits.whole.filter(|&limit| self.start.checked_add(limit) == Some(at));
        let (kind, message) = match (whole, phase) {
            (Some(limit), _) => (Kind::Timeout, format!("not done within {} (--max-time)", show(limit))),
            (None, Phase::Head) => {
                let limit = show(self.limits.head.unwrap_or_default());
                (Kind::FirstByteTimeout, format!("no response within {limit} (--first-byte-timeout)"))
            }
            (None, _) => {
                let limit = show(self.limits.piece.unwrap_or_default());
                (Kind::IdleTimeout, format!("nothing more of the body for {limit} (--idle-timeout)"))
            }
        };
        Fault::new(kind, message)
    }
}

pub(super) fn show(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::sleep;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(10);

    fn watched<T>(head: Duration, piece: Duration, whole: Duration, test: impl AsyncFnOnce(&mut Watch<'_>) -> T) -> T {
        let limits = Limits { head: Some(head), piece: Some(piece), whole: Some(whole) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let start = Instant::now();
            let timer = pin!(limits.timer(start));
            test(&mut Watch::new(limits, start, timer)).await
        })
    }

    #[test]
    fn each_phase_has_its_own_limit() {
        for (phase, kind, head, piece) in
            [(Phase::Head, Kind::FirstByteTimeout, SHORT, HOUR), (Phase::Piece, Kind::IdleTimeout, HOUR, SHORT)]
        {
            let outcome = watched(head, piece, HOUR, async |watch| watch.over(phase, pending::<()>()).await);
            assert_eq!(outcome.unwrap_err().failure.kind, kind);
        }
    }

    #[test]
    fn every_piece_has_all_of_the_idle_time() {
        let idle = Duration::from_secs(3);
        // The timer fires early, for the head; and all pieces together take longer than one may.
        let outcome = watched(SHORT, idle, HOUR, async |watch| {
            for _ in 0..8 {
                watch.over(Phase::Piece, sleep(idle / 7)).await?;
            }
            Ok::<_, Fault>(watch.elapsed())
        });
        assert!(outcome.unwrap() > idle);
    }

    #[test]
    fn drips_of_a_body_end_with_the_whole_attempt() {
        let failure = watched(HOUR, HOUR, 10 * SHORT, async |watch| {
            loop {
                if let Err(fault) = watch.over(Phase::Piece, sleep(SHORT / 2)).await {
                    break fault.failure;
                }
            }
        });
        assert_eq!(failure.kind, Kind::Timeout);
        assert!(failure.message.contains("100ms (--max-time)"), "{}", failure.message);
    }

    #[test]
    fn what_is_there_already_is_never_late() {
        let none = Duration::ZERO;
        let outcome = watched(none, none, none, async |watch| watch.over(Phase::Head, ready(7)).await);
        assert_eq!(outcome.unwrap(), 7);
    }
}
