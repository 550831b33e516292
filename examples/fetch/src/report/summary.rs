//! What a run came to, for people and, as JSON, for programs. Its size does not grow with the number of rows.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::output::record::{Kind, Record};

/// Of so many hosts the times are kept; more are counted together.
const HOSTS: usize = 4_096;

/// How many of the slowest hosts are named.
const SLOWEST: usize = 5;

/// The longest latency that is told apart, in microseconds: an hour.
const LONGEST: u64 = 3_600_000_000;

#[derive(Debug)]
pub(crate) struct Summary {
    rows: u64,
    failed: u64,
    bytes: u64,
    statuses: BTreeMap<u16, u64>,
    errors: BTreeMap<Kind, u64>,
    /// Of rows that got a response, in microseconds.
    latency: Histogram<u64>,
    hosts: HashMap<Box<str>, Host>,
}

/// What `--summary-json` writes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: u64,
    pub(crate) succeeded: u64,
    pub(crate) failed: u64,
    /// Rows that have their record from an earlier run (`--resume`).
    pub(crate) done_before: u64,
    /// Those of them that failed then.
    pub(crate) failed_before: u64,
    /// Rows left out as they were there before (`--dedupe`).
    pub(crate) duplicates: u64,
    pub(crate) interrupted: bool,
    /// Whether there are rows that have no record, or may be: after an interruption, where `--deadline` passed before the
    /// end of the input, and where the records could not be written any more.
    pub(crate) incomplete: bool,
    pub(crate) seconds: f64,
    pub(crate) rows_per_second: f64,
    pub(crate) bytes: u64,
    pub(crate) retries: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<Kind, u64>,
    pub(crate) latency_seconds: Latency,
    pub(crate) slowest_hosts: Vec<Slow>,
    /// For each power of two of milliseconds, how many responses took less, and at least half.
    #[serde(skip)]
    buckets: Vec<(u64, u64)>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Slow {
    pub(crate) host: Box<str>,
    pub(crate) responses: u64,
    pub(crate) mean_seconds: f64,
}

/// What the summary is told by others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Circumstances {
    pub(crate) elapsed: Duration,
    pub(crate) retries: u64,
    pub(crate) done_before: u64,
    pub(crate) failed_before: u64,
    pub(crate) duplicates: u64,
    pub(crate) interrupted: bool,
    pub(crate) incomplete: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    responses: u64,
    seconds: f64,
}

impl Summary {
    pub(crate) fn new() -> Self {
        Summary {
            rows: 0,
            failed: 0,
            bytes: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            latency: Histogram::new_with_bounds(1, LONGEST, 2).expect("these bounds are not impossible"),
            hosts: HashMap::new(),
        }
    }

    pub(crate) fn count(&mut self, record: &Record) {
        self.rows += 1;
        self.bytes += record.bytes;
        if let Some(failure) = &record.error {
            self.failed += 1;
            *self.errors.entry(failure.kind).or_default() += 1;
        }
        let Some(status) = record.status else { return };
        *self.statuses.entry(status).or_default() += 1;
        self.latency.saturating_record((record.seconds * 1e6) as u64);
        let host = host_of(&record.url);
        let host = if self.hosts.len() >= HOSTS && !self.hosts.contains_key(host) { "(others)" } else { host };
        let times = match self.hosts.get_mut(host) {
            Some(times) => times,
            None => self.hosts.entry(host.into()).or_default(),
        };
        times.responses += 1;
        times.seconds += record.seconds;
    }

    pub(crate) fn report(&self, circumstances: Circumstances) -> Report {
        let Circumstances { elapsed, retries, done_before, failed_before, duplicates, interrupted, incomplete } =
            circumstances;
        let seconds = elapsed.as_secs_f64();
        let quantile = |q| self.latency.value_at_quantile(q) as f64 / 1e6;
        let mut slowest: Vec<_> = self.hosts.iter().map(|(host, times)| Slow::of(host, times)).collect();
        slowest.sort_by(|a, b| b.mean_seconds.total_cmp(&a.mean_seconds));
        slowest.truncate(SLOWEST);
        Report {
            rows: self.rows,
            succeeded: self.rows - self.failed,
            failed: self.failed,
            done_before,
            failed_before,
            duplicates,
            interrupted,
            incomplete,
            seconds,
            rows_per_second: self.rows as f64 / seconds.max(1e-9),
            bytes: self.bytes,
            retries,
            statuses: self.statuses.clone(),
            errors: self.errors.clone(),
            latency_seconds: Latency {
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                max: self.latency.max() as f64 / 1e6,
            },
            slowest_hosts: slowest,
            buckets: self.buckets(),
        }
    }

    fn buckets(&self) -> Vec<(u64, u64)> {
        let mut buckets: BTreeMap<u64, u64> = BTreeMap::new();
        for step in self.latency.iter_recorded() {
            let milliseconds = (step.value_iterated_to() / 1_000 + 1).next_power_of_two();
            *buckets.entry(milliseconds).or_default() += step.count_since_last_iteration();
        }
        buckets.into_iter().collect()
    }
}

impl Report {
    /// The share of rows that failed, from 0 to 1, those done before included.
    pub(crate) fn failed_share(&self) -> f64 {
        let (failed, rows) = (self.failed + self.failed_before, self.rows + self.done_before);
        if rows == 0 { 0.0 } else { failed as f64 / rows as f64 }
    }
}

impl Slow {
    fn of(host: &str, times: &Host) -> Self {
        Slow { host: host.into(), responses: times.responses, mean_seconds: times.seconds / times.responses as f64 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { rows, succeeded, failed, seconds, rows_per_second, retries, .. } = self;
        let bytes = ByteSize(self.bytes).display().iec();
        write!(f, "{rows} URLs in {seconds:.2} s ({rows_per_second:.0}/s): {succeeded} succeeded, {failed} failed")?;
        write!(f, "; {bytes}, {retries} retries")?;
        for (count, what) in [(self.duplicates, "duplicates left out"), (self.done_before, "done before")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if self.failed_before > 0 {
            write!(f, " ({} of them failed: --retry-failed does these again)", self.failed_before)?;
        }
        if !self.statuses.is_empty() {
            let statuses: Vec<_> = self.statuses.iter().map(|(status, count)| format!("{status} ({count})")).collect();
            write!(f, "\n  status   {}", statuses.join(", "))?;
        }
        if !self.errors.is_empty() {
            let errors: Vec<_> = self.errors.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
            write!(f, "\n  errors   {}", errors.join(", "))?;
        }
        if let Some(most) = self.buckets.iter().map(|&(_, count)| count).max() {
            let Latency { p50, p90, p99, max } = self.latency_seconds;
            let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
            write!(f, "\n  latency  p50 {}, p90 {}, p99 {}, max {}", ms(p50), ms(p90), ms(p99), ms(max))?;
            for &(milliseconds, count) in &self.buckets {
                let bar = "#".repeat((count * 40).div_ceil(most.max(1)) as usize);
                write!(f, "\n  {:>12}  {bar} {count}", format!("< {milliseconds} ms"))?;
            }
        }
        if self.slowest_hosts.len() > 1 {
            let hosts =
                self.slowest_hosts.iter().map(|slow| format!("{} ({:.0} ms)", slow.host, slow.mean_seconds * 1e3));
            write!(f, "\n  slowest  {}", hosts.collect::<Vec<_>>().join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Host and port of a URL as records show it.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::record::Failure;

    fn record(url: &str, status: Option<u16>, seconds: f64, kind: Option<Kind>) -> Record {
        let error = kind.map(|kind| Failure { kind, message: String::new() });
        Record { url: url.to_owned(), status, seconds, error, bytes: 10, ..Record::default() }
    }

    #[test]
    fn everything_is_counted_once() {
        let mut summary = Summary::new();
        summary.count(&record("http://a/x", Some(200), 0.010, None));
        summary.count(&record("http://a/y?q", Some(404), 0.030, Some(Kind::Status)));
        summary.count(&record("http://b:81/", Some(200), 0.500, None));
        summary.count(&record("http://c/", None, 9.0, Some(Kind::Dns)));
        let report =
            summary.report(Circumstances { elapsed: Duration::from_secs(2), retries: 3, ..Default::default() });
        assert_eq!((report.rows, report.succeeded, report.failed, report.bytes), (4, 2, 2, 40));
        assert_eq!(report.statuses, [(200, 2), (404, 1)].into());
        assert_eq!(report.errors, [(Kind::Dns, 1), (Kind::Status, 1)].into());
        assert!((0.029..0.031).contains(&report.latency_seconds.p50), "{:?}", report.latency_seconds);
        assert!(report.latency_seconds.max < 1.0, "a row without a response has no latency");
        assert_eq!(&*report.slowest_hosts[0].host, "b:81");
        assert_eq!((&*report.slowest_hosts[1].host, report.slowest_hosts[1].responses), ("a", 2));
        assert_eq!(report.failed_share(), 0.5);

        let text = report.to_string();
        assert!(text.starts_with("4 URLs in 2.00 s (2/s): 2 succeeded, 2 failed; 40 B, 3 retries\n"), "{text}");
        assert!(text.contains("errors   dns (1), status (1)"), "{text}");
        assert!(text.contains("< 16 ms  ######"), "{text}");
        let json = serde_json::to_value(&report).expect("a report is data");
        assert_eq!(json["errors"]["dns"], 1);
        assert_eq!(json["statuses"]["404"], 1);
    }

    #[test]
    fn hosts_beyond_the_bound_are_counted_together() {
        let mut summary = Summary::new();
        for host in 0..HOSTS + 50 {
            summary.count(&record(&format!("http://h{host}/"), Some(200), 0.001, None));
        }
        assert_eq!(summary.hosts.len(), HOSTS + 1);
        assert_eq!(summary.hosts["(others)"].responses, 50);
    }

    #[test]
    fn what_failed_before_counts() {
        let mut summary = Summary::new();
        summary.count(&record("http://a/", Some(200), 0.001, None));
        let report = summary.report(Circumstances { done_before: 9, failed_before: 2, ..Default::default() });
        assert_eq!(report.failed_share(), 0.2);
        let text = report.to_string();
        assert!(text.contains(", 9 done before (2 of them failed: --retry-failed"), "{text}");
    }

    #[test]
    fn nothing_is_a_report_as_well() {
        let report = Summary::new().report(Circumstances::default());
        assert_eq!(report.failed_share(), 0.0);
        assert_eq!(report.to_string(), "0 URLs in 0.00 s (0/s): 0 succeeded, 0 failed; 0 B, 0 retries");
    }
}
