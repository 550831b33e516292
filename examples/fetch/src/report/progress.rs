//! What is seen while a run goes on: a bar on a terminal, plain lines now and then elsewhere, nothing with `--quiet`.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use futures_ext::Progress;

use crate::engine::Control;
use crate::output::record::Record;

/// How often a plain line is written.
const PLAIN: Duration = Duration::from_secs(10);

/// What is counted for those who look on.
#[derive(Debug)]
pub(crate) struct Live {
    control: Arc<Control>,
    total: Option<u64>,
    start: Instant,
    rows: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
}

impl Live {
    pub(crate) fn new(control: Arc<Control>, total: Option<u64>, start: Instant) -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Live { control, total, start, rows: zero(), failed: zero(), bytes: zero() })
    }

    pub(crate) fn count(&self, record: &Record) {
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(record.error.is_some()), Ordering::Relaxed);
        self.bytes.fetch_add(record.bytes, Ordering::Relaxed);
    }

    /// The bar, which is drawn only on a terminal.
    pub(crate) fn bar(self: &Arc<Self>, quiet: bool) -> Progress {
        let live = self.clone();
        let bar = Progress::new().description("fetch").unit("url").leave(false).postfix_with(move || live.rest());
        let bar = self.total.into_iter().fold(bar, Progress::total);
        if quiet { bar.hidden() } else { bar }
    }

    /// Writes a line now and then, if nobody sees the bar. Never ends.
    pub(crate) async fn lines(&self, quiet: bool) {
        if quiet || std::io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        let mut clock = tokio::time::interval(PLAIN);
        clock.tick().await; // The first comes at once.
        loop {
            clock.tick().await;
            super::say(self.line());
        }
    }

    fn line(&self) -> String {
        let rows = self.rows.load(Ordering::Relaxed);
        let rate = rows as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let mut line = format!("fetch: {rows} done");
        if let Some(total) = self.total.filter(|&total| total > 0) {
            let _ = write!(line, " of {total} ({:.0} %)", 100.0 * rows as f64 / total as f64);
        }
        let _ = write!(line, ", {rate:.0}/s, {}", self.rest());
        line
    }

    /// Bytes, errors, retries, and the busiest hosts.
    fn rest(&self) -> String {
        let bytes = ByteSize(self.bytes.load(Ordering::Relaxed)).display().iec();
        let failed = self.failed.load(Ordering::Relaxed);
        let retries = self.control.retries.load(Ordering::Relaxed);
        let mut rest = format!("{bytes}, {failed} failed, {retries} retries");
        for (host, running, waiting) in self.control.busiest.lock().iter() {
            let _ = write!(rest, " | {host} {running}+{waiting}");
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::record::{Failure, Kind};

    #[test]
    fn a_line_tells_what_was_done_and_where_the_rest_waits() {
        let control = Arc::new(Control::default());
        *control.busiest.lock() = vec![("a.example".to_owned(), 3, 40)];
        control.retries.store(2, Ordering::Relaxed);
        let live = Live::new(control, Some(10), Instant::now());
        live.count(&Record { bytes: 2048, ..Record::default() });
        let failure = Failure { kind: Kind::Dns, message: String::new() };
        live.count(&Record { error: Some(failure), ..Record::default() });
        let line = live.line();
        assert!(line.starts_with("fetch: 2 done of 10 (20 %), "), "{line}");
        assert!(line.ends_with("/s, 2.0 KiB, 1 failed, 2 retries | a.example 3+40"), "{line}");
    }
}
