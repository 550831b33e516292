//! Whether to spin before a sleep: as long as that has paid lately.
//!
//! Spinning for about as long as a wake-up takes pays when the peer runs on another core and answers at once, and is a
//! waste otherwise. So a spin ends after [`LONGEST`]; each one that ends with nothing costs credit, and without credit
//! the next sleeps begin at once: 16 of them, then twice as many each time. What has no traffic sleeps. Nobody spins on
//! a machine with one processor.
//!
//! Blocked threads at locks and lists don't need it: they look a fixed number of times ([`spins`](super::spins)), as
//! what they wait for takes no longer.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_micros(30);
/// After so long, those who want the core have it between two looks: perhaps it's the one who is waited for.
const CLOSELY: Duration = Duration::from_micros(3);
const MOST_CREDIT: i32 = 16;

/// How spinning has paid lately, for one who waits.
#[derive(Debug)]
pub(crate) struct Spin {
    credit: AtomicI32,
    /// How many sleeps begin without spinning; and how many it was the last time.
    skip: AtomicI32,
    skipped: AtomicI32,
}

impl Default for Spin {
    fn default() -> Self {
        Spin { credit: AtomicI32::new(MOST_CREDIT / 2), skip: AtomicI32::new(0), skipped: AtomicI32::new(0) }
    }
}

impl Spin {
    /// Waits shortly for `come`; whether it did.
    pub(crate) fn spin(&self, come: impl Fn() -> bool) -> bool {
        // All of these are hints, and changed by the one who waits.
        const ANY: Ordering = Ordering::Relaxed;
        if super::spins() == 0 {
            return false;
        }
        let skip = self.skip.load(ANY);
        if skip > 0 {
            self.skip.store(skip - 1, ANY);
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..32 {
                if come() {
                    self.credit.store((self.credit.load(ANY) + 1).min(MOST_CREDIT), ANY);
                    self.skipped.store(0, ANY);
                    return true;
                }
                std::hint::spin_loop();
            }
            let spent = start.elapsed();
            if spent >= LONGEST {
                break;
            }
            if spent >= CLOSELY {
                std::thread::yield_now();
            }
        }
        let credit = self.credit.load(ANY) - 4;
        self.credit.store(credit.max(0), ANY);
        if credit <= 0 {
            let skip = (self.skipped.load(ANY) * 2).clamp(16, 1_024);
            self.skipped.store(skip, ANY);
            self.skip.store(skip, ANY);
        }
        false
    }
}
