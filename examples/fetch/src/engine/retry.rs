//! Whether an attempt is made again, and when.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::Method;

use crate::http::Attempt;
use crate::output::record::Kind;
use crate::settings::RetrySettings;

/// What is to be done after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Its record is the row's.
    Final,
    /// Another attempt after `delay`.
    Again {
        delay: Duration,
        /// Whether the whole host waits: it asked for it, or can't be reached at all.
        host: bool,
    },
}

/// Judges the `attempts`th attempt of a request with this method.
pub(crate) fn judge(settings: &RetrySettings, method: &Method, attempts: u32, attempt: &Attempt) -> Verdict {
    if !attempt.transient || attempts > settings.times || !(method.is_idempotent() || settings.unsafe_methods) {
        return Verdict::Final;
    }
    let delay = match attempt.retry_after {
        // Whoever asks for more has said no.
        Some(asked) if asked > settings.max_delay => return Verdict::Final,
        Some(asked) => asked,
        None => backoff(settings, attempts),
    };
    let kind = attempt.record.error.as_ref().map(|failure| failure.kind);
    let unreachable = matches!(kind, Some(Kind::Dns | Kind::Connect | Kind::ConnectTimeout));
    Verdict::Again { delay, host: attempt.retry_after.is_some() || attempt.overload || unreachable }
}

/// The delay after so many attempts: exponential, with jitter, so that many who failed together don't come back
/// together.
fn backoff(settings: &RetrySettings, attempts: u32) -> Duration {
    let delays = ExponentialBuilder::new()
        .with_min_delay(settings.min_delay)
        .with_max_delay(settings.max_delay)
        .without_max_times()
        .with_jitter()
        .build();
    // The jitter comes on top of the bound.
    let delay = delays.into_iter().nth(attempts.saturating_sub(1).min(64) as usize);
    delay.unwrap_or(settings.max_delay).min(settings.max_delay)
}
