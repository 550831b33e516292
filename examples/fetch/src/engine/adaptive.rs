//! `--concurrency auto`: how many requests run at once, found while running. It rises while the throughput does, and
//! halves when the servers say that it is too much: additive increase, multiplicative decrease, as TCP's congestion
//! avoidance has it (RFC 5681), with the throughput instead of a lost packet as the sign that the top is reached.

use std::time::{Duration, Instant};

use crate::settings::Concurrency;

/// How many run at once at the start of `auto`.
const START: usize = 8;

/// For how long the throughput is measured before the next change.
const PERIOD: Duration = Duration::from_millis(250);

/// By how much the throughput must grow for the growth to be worth it.
const WORTH: f64 = 1.03;

#[derive(Debug)]
pub(crate) struct Limit {
    now: usize,
    most: usize,
    /// `None` if it is fixed.
    search: Option<Search>,
}

#[derive(Debug)]
struct Search {
    since: Instant,
    done: u32,
    /// The throughput of the period before, a second, and the limit it was reached with.
    before: Option<(f64, usize)>,
    /// Whether the limit was reached in this period: otherwise it says nothing.
    full: bool,
    /// Once more has brought nothing or too much, the limit doubles no more.
    cautious: bool,
    halved: Option<Instant>,
}

impl Limit {
    pub(crate) fn new(concurrency: Concurrency, now: Instant) -> Self {
        match concurrency {
            Concurrency::Fixed(most) => Limit { now: most, most, search: None },
            Concurrency::Auto { most } => {
                let search = Search { since: now, done: 0, before: None, full: false, cautious: false, halved: None };
                Limit { now: START.min(most), most, search: Some(search) }
            }
        }
    }

    /// How many may run at once.
    pub(crate) fn get(&self) -> usize {
        self.now
    }

    /// A request has ended at `now` while so many ran, itself included; `overload` if it was too much for its server.
    pub(crate) fn ended(&mut self, now: Instant, running: usize, overload: bool) {
        let Some(search) = &mut self.search else { return };
        search.done += 1;
        search.full |= running >= self.now;
        let elapsed = now.saturating_duration_since(search.since);
        if overload {
            // Once for each period: those that ran together fail together.
            if search.halved.is_none_or(|at| now.saturating_duration_since(at) >= PERIOD) {
                self.now = (self.now / 2).max(1);
                search.restart(now, None);
                (search.cautious, search.halved) = (true, Some(now));
            }
            return;
        }
        // At least so many that their number says something.
        if elapsed < PERIOD || (search.done as usize) < self.now.min(50) {
            return;
        }
        let rate = f64::from(search.done) / elapsed.as_secs_f64();
        let used = self.now;
        if search.full {
            let better = search.before.is_none_or(|(before, limit)| rate > before * WORTH || used < limit);
            let step = if search.cautious { (self.now / 8).max(1) } else { self.now };
            if better {
                self.now = (self.now + step).min(self.most);
            } else if let Some((_, limit)) = search.before
                && limit < self.now
            {
                // More brought nothing: back, and slowly from here.
                self.now = limit;
                search.cautious = true;
            }
        }
        search.restart(now, Some((rate, used)));
    }
}

impl Search {
    fn restart(&mut self, now: Instant, before: Option<(f64, usize)>) {
        (self.since, self.done, self.full, self.before) = (now, 0, false, before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs against a server that answers `capacity` requests a second at most, each in 20 ms at least.
    fn run(limit: &mut Limit, from: Instant, seconds: f64, capacity: f64) -> Instant {
        let end = from + Duration::from_secs_f64(seconds);
        let mut now = from;
        while now < end {
            let rate = (limit.get() as f64 / 0.02).min(capacity);
            now += Duration::from_secs_f64(1.0 / rate);
            limit.ended(now, limit.get(), false);
        }
        now
    }

    #[test]
    fn a_fixed_limit_stays() {
        let now = Instant::now();
        let mut limit = Limit::new(Concurrency::Fixed(5), now);
        run(&mut limit, now, 2.0, 1e6);
        limit.ended(now, 5, true);
        assert_eq!(limit.get(), 5);
    }

    #[test]
    fn it_rises_to_what_the_server_can_do_and_not_far_beyond() {
        let now = Instant::now();
        let mut limit = Limit::new(Concurrency::Auto { most: 10_000 }, now);
        run(&mut limit, now, 30.0, 2_000.0); // reached with 40
        assert!((40..=160).contains(&limit.get()), "{}", limit.get());
    }

    #[test]
    fn it_keeps_to_the_most() {
        let now = Instant::now();
        let mut limit = Limit::new(Concurrency::Auto { most: 20 }, now);
        run(&mut limit, now, 10.0, 1e9);
        assert_eq!(limit.get(), 20);
    }

    #[test]
    fn it_halves_once_for_those_that_fail_together() {
        let now = Instant::now();
        let mut limit = Limit::new(Concurrency::Auto { most: 64 }, now);
        let now = run(&mut limit, now, 5.0, 1e9);
        assert_eq!(limit.get(), 64);
        for _ in 0..30 {
            limit.ended(now, 64, true);
        }
        assert_eq!(limit.get(), 32);
        limit.ended(now + PERIOD, 32, true);
        assert_eq!(limit.get(), 16);
    }

    #[test]
    fn it_never_falls_below_one() {
        let mut now = Instant::now();
        let mut limit = Limit::new(Concurrency::Auto { most: 64 }, now);
        for _ in 0..20 {
            now += PERIOD;
            limit.ended(now, 1, true);
        }
        assert_eq!(limit.get(), 1);
    }
}
